"""Writing texts: ours against transformers' `generate`, in pairs in one run.

    ./launch/benchmark_decoding.sh [--pairs=K] [--only=gpt2|bart] [--out=FILE] ...

Random networks of GPT-2 small's and BART-base's shape, whole vocabularies, float32, the same
weights on both sides. GPT-2: greedy, 32 prompts of 32 tokens, 128 new ones. BART: beam 5, 8 sources
of 64 tokens, 64 new ones. Nothing ends a text before, so both take as many steps. Compiling is
excluded, and the first call of each; the texts are compared. Seconds are those of the clock, and
beside them those of all cores: on a machine where others work too, the latter tell more. Both work where
jax does: on a GPU, where torch must have CUDA too, or on the CPU.
"""

import argparse
import json
import os
import statistics
import tempfile
import time

import jax
import numpy as np
import torch
import transformers
from arguments import file_to_write, whole

from lightpaff_jax import generate, models
from lightpaff_jax.batch import Batch
from lightpaff_jax.models.huggingface import checkpoint_dir

START, PAD = 2, 1


def gpt2():
    """The network and how it is asked: rows, prompt's tokens, new tokens, beams."""
    c = transformers.GPT2Config(bos_token_id=None, eos_token_id=None)
    return transformers.GPT2LMHeadModel(c), (32, 32, 128, 1)


def bart():
    """As `gpt2`."""
    c = transformers.BartConfig(
        vocab_size=50265, d_model=768, encoder_layers=6, decoder_layers=6,
        encoder_attention_heads=12, decoder_attention_heads=12, encoder_ffn_dim=3072,
        decoder_ffn_dim=3072, scale_embedding=True, forced_eos_token_id=None,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(c), (8, 64, 64, 5)


SHAPES = {'gpt2': gpt2, 'bart': bart}


def theirs(network, ids, size: int, beams: int):
    """A call that writes by transformers, and gives the new ids."""
    c = transformers.GenerationConfig(
        max_new_tokens=size, num_beams=beams, do_sample=False, early_stopping=beams > 1,
        pad_token_id=PAD, decoder_start_token_id=START,
    )  # fmt: skip
    network.generation_config = c
    device = 'cuda' if jax.default_backend() == 'gpu' else 'cpu'
    network.to(device)
    x = torch.tensor(ids, device=device)
    mask = torch.ones_like(x)

    def call():
        with torch.no_grad():
            ids = network.generate(x, attention_mask=mask, generation_config=c)
        return ids[:, -size:].cpu().numpy()

    return call


def ours(network, ids, size: int, beams: int):
    """A compiled call that writes by the package, and gives the new ids."""
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        model = models.build(checkpoint_dir.read_network('--model', folder))
        params = jax.device_put(checkpoint_dir.read_params('--model', folder, model))
    blank = np.zeros((len(ids), 1), np.int32)
    if model.network.family == 'mass':
        prompt = Batch(blank, blank, blank, source=ids)
    else:
        prompt = Batch(ids, blank, blank)
    s = generate.Settings(max_length=size, beams=beams)
    call = jax.jit(generate.make_generate(model, s, start_id=START, eos_id=-1, pad_id=PAD))
    compiled = call.lower(params, prompt).compile()
    return lambda: np.asarray(compiled(params, prompt).ids)


def seconds(call) -> tuple[float, float]:
    """One call: by the clock, and of all cores together."""
    clock, cores = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - clock, time.process_time() - cores


def measure(name: str, a: argparse.Namespace) -> dict:
    """Runs one shape, prints each pair; what `--out` has of it."""
    torch.manual_seed(0)
    network, (rows, length, size, beams) = SHAPES[name]()
    size = a.tokens or size
    ids = np.random.default_rng(0).integers(4, 50000, (rows, length)).astype(np.int32)
    calls = {'ours': ours(network.eval(), ids, size, beams)}
    calls['transformers'] = theirs(network, ids, size, beams)
    first = {key: call() for key, call in calls.items()}
    equal = int((first['ours'] == first['transformers']).all(axis=1).sum())
    print(f'{name}: {rows} rows, {size} tokens, beam {beams}; equal texts: {equal}', flush=True)
    pairs: list[dict[str, tuple[float, float]]] = []
    for _ in range(a.pairs):
        pairs.append({key: seconds(call) for key, call in calls.items()})
        print('  '.join(f'{k} {x:.2f} s ({y:.2f} s of cores)' for k, (x, y) in pairs[-1].items()),
              flush=True)  # fmt: skip
    ratios = [
        statistics.median(p['transformers'][i] / p['ours'][i] for p in pairs) for i in range(2)
    ]
    tokens = {k: rows * size / statistics.median(p[k][0] for p in pairs) for k in calls}
    print(
        f'median of {a.pairs} pairs, transformers / ours: {ratios[0]:.2f} by the clock, '
        f'{ratios[1]:.2f} of cores; ours {tokens["ours"]:.0f} tokens/s, '
        f'transformers {tokens["transformers"]:.0f}',
        flush=True,
    )
    return {
        'rows': rows, 'prompt': length, 'tokens': size, 'beams': beams, 'equal_texts': equal,
        'pairs': pairs, 'speed_ratio': ratios[0], 'core_seconds_ratio': ratios[1],
        'tokens_per_second': tokens,
    }  # fmt: skip


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument('--pairs', type=whole(1), default=5)
    parser.add_argument('--only', choices=[*SHAPES], help='one of the shapes')
    parser.add_argument('--tokens', type=whole(1), default=0, help='new tokens; 0: as above')
    parser.add_argument('--out', type=file_to_write, help='JSON file for the figures')
    a = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    hardware = f'1 x {jax.devices()[0].device_kind}, {os.cpu_count()} cores'
    print(f'{hardware}, jax {jax.__version__}, torch {torch.__version__} with '
          f'{torch.get_num_threads()} threads, transformers {transformers.__version__}')  # fmt: skip
    result = {
        'hardware': hardware, 'jax': jax.__version__, 'torch': torch.__version__,
        'transformers': transformers.__version__,
        'shapes': {name: measure(name, a) for name in SHAPES if a.only in (None, name)},
    }  # fmt: skip
    if a.out:
        a.out.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
