"""Compares the speed of text generation with `generate` of transformers, in pairs in one run.

    ./launch/benchmark_decoding.sh [--pairs=K] [--only=gpt2|bart] [--out=FILE] ...

Both run the same random float32 weights of the shape of GPT-2 small or BART-base, with the whole
vocabulary. GPT-2 decodes greedily: 32 prompts of 32 tokens, 128 new tokens. BART searches with 5
beams: 8 sources of 64 tokens, 64 new tokens. No end token stops a text, so both take the same
number of steps. Compilation and the first call are not timed; the texts of the first calls are
compared.

Prints wall-clock seconds and CPU seconds, the sum over all cores. On a machine that also runs other
jobs, CPU seconds are more reliable. Both run on the device of JAX: a GPU, which torch must support
too, or the CPU.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import torch
import transformers
from arguments import integer, make_parser, output_file

from lightpaff_jax import generate, models
from lightpaff_jax.batch import Batch
from lightpaff_jax.models.huggingface import checkpoint_dir

START_ID, PAD_ID = 2, 1

Generate = Callable[[], np.ndarray]
"""Generates from fixed prompts; returns the new ids [B, T]."""


class Workload(NamedTuple):
    """A network and the sizes of its task."""

    network: transformers.PreTrainedModel
    rows: int
    prompt_length: int
    new_tokens: int
    beams: int


def gpt2() -> Workload:
    """Returns GPT-2 small for greedy decoding."""
    shape = transformers.GPT2Config(bos_token_id=None, eos_token_id=None)
    return Workload(transformers.GPT2LMHeadModel(shape), 32, 32, 128, beams=1)


def bart() -> Workload:
    """Returns BART-base for beam search; scaled embeddings make it a MASS network."""
    shape = transformers.BartConfig(
        vocab_size=50265,
        d_model=768,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=12,
        decoder_attention_heads=12,
        encoder_ffn_dim=3072,
        decoder_ffn_dim=3072,
        scale_embedding=True,
        forced_eos_token_id=None,
    )
    return Workload(transformers.BartForConditionalGeneration(shape), 8, 64, 64, beams=5)


WORKLOADS = {'gpt2': gpt2, 'bart': bart}


def transformers_generate(network, ids: np.ndarray, new_tokens: int, beams: int) -> Generate:
    """Returns a function that generates with transformers."""
    generation_config = transformers.GenerationConfig(
        max_new_tokens=new_tokens,
        num_beams=beams,
        do_sample=False,
        early_stopping=beams > 1,
        pad_token_id=PAD_ID,
        decoder_start_token_id=START_ID,
    )
    network.generation_config = generation_config
    device = 'cuda' if jax.default_backend() == 'gpu' else 'cpu'
    network.to(device)
    prompts = torch.tensor(ids, device=device)
    mask = torch.ones_like(prompts)

    def call() -> np.ndarray:
        with torch.no_grad():
            output = network.generate(
                prompts, attention_mask=mask, generation_config=generation_config
            )
        return output[:, -new_tokens:].cpu().numpy()

    return call


def package_generate(network, ids: np.ndarray, new_tokens: int, beams: int) -> Generate:
    """Returns a compiled function that generates with the package."""
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        model = models.build(checkpoint_dir.read_network('--model', folder))
        params = jax.device_put(checkpoint_dir.read_params('--model', folder, model))
    blank = np.zeros((len(ids), 1), np.int32)  # decoding reads no labels or weights
    if model.network.family == 'mass':
        prompts = Batch(blank, blank, blank, source=ids)
    else:
        prompts = Batch(ids, blank, blank)
    settings = generate.Settings(max_length=new_tokens, beams=beams)
    call = generate.make_generate(model, settings, start_id=START_ID, eos_id=-1, pad_id=PAD_ID)
    program = jax.jit(call).lower(params, prompts).compile()
    return lambda: np.asarray(program(params, prompts).ids)


def measure_seconds(call: Generate) -> tuple[float, float]:
    """Returns the (wall-clock seconds, CPU seconds) of a call."""
    wall_start, cpu_start = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall_start, time.process_time() - cpu_start


def measure(name: str, options: argparse.Namespace) -> dict:
    """Runs a workload and prints each pair; returns its part of the file of `--out`."""
    torch.manual_seed(0)
    network, rows, prompt_length, new_tokens, beams = WORKLOADS[name]()
    new_tokens = options.tokens or new_tokens
    ids = np.random.default_rng(0).integers(4, 50000, (rows, prompt_length)).astype(np.int32)
    calls = {
        'ours': package_generate(network.eval(), ids, new_tokens, beams),
        'transformers': transformers_generate(network, ids, new_tokens, beams),
    }
    texts = {library: call() for library, call in calls.items()}
    equal = int((texts['ours'] == texts['transformers']).all(axis=1).sum())
    print(
        f'{name}: {rows} rows, {new_tokens} tokens, beam size {beams}, {equal} equal texts',
        flush=True,
    )
    pairs: list[dict[str, tuple[float, float]]] = []
    for _ in range(options.pairs):
        pair = {library: measure_seconds(call) for library, call in calls.items()}
        pairs.append(pair)
        figures = (f'{k} {wall:.2f} s (CPU {cpu:.2f} s)' for k, (wall, cpu) in pair.items())
        print('  '.join(figures), flush=True)
    wall_ratio, cpu_ratio = (
        statistics.median(pair['transformers'][i] / pair['ours'][i] for pair in pairs)
        for i in range(2)
    )
    rates = {k: rows * new_tokens / statistics.median(pair[k][0] for pair in pairs) for k in calls}
    print(
        f'median of {options.pairs} pairs: transformers / ours {wall_ratio:.2f} in wall-clock time, '
        f'{cpu_ratio:.2f} in CPU time; ours {rates["ours"]:.0f} tokens/s, '
        f'transformers {rates["transformers"]:.0f} tokens/s',
        flush=True,
    )
    return {
        'rows': rows,
        'prompt': prompt_length,
        'tokens': new_tokens,
        'beams': beams,
        'equal_texts': equal,
        'pairs': pairs,
        'speed_ratio': wall_ratio,
        'core_seconds_ratio': cpu_ratio,
        'tokens_per_second': rates,
    }


def main() -> None:
    """Runs the workloads and writes the file of `--out`."""
    parser = make_parser(__doc__)
    parser.add_argument('--pairs', type=integer(1), default=5, help='calls of each library')
    parser.add_argument('--only', choices=[*WORKLOADS], help='the only workload to run')
    parser.add_argument(
        '--tokens', type=integer(1), default=0, help='new tokens; default: as described above'
    )
    parser.add_argument('--out', type=output_file, help='JSON file for the figures')
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    hardware = f'1 x {jax.devices()[0].device_kind}, {os.cpu_count()} cores'
    print(
        f'{hardware}, jax {jax.__version__}, torch {torch.__version__} with '
        f'{torch.get_num_threads()} threads, transformers {transformers.__version__}'
    )
    names = [options.only] if options.only else [*WORKLOADS]
    result = {
        'hardware': hardware,
        'jax': jax.__version__,
        'torch': torch.__version__,
        'transformers': transformers.__version__,
        'shapes': {name: measure(name, options) for name in names},
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
