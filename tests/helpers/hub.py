"""A local server that stands in for the Hugging Face hub."""

import contextlib
import hashlib
import http.server
import json
import pathlib
import threading
from collections.abc import Iterator

from huggingface_hub import constants

COMMIT = 'c0ffee' + 34 * '0'
REVISIONS = ('main', 'v1', COMMIT)


class Hub:
    """Serves folders as models that have one commit.

    Attributes:
      models: id -> folder.
      requests: paths of the files that were sent, in order.
      damage: a function of the content of each file; by default the content itself.
      pause: each file waits for this event.
    """

    def __init__(self, models: dict[str, pathlib.Path]):
        self.models = models
        self.requests: list[str] = []
        self.damage = lambda content: content
        self.pause = threading.Event()
        self.pause.set()
        self.url = ''

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        """Answers GET or HEAD as the hub does: of a model, or of one of its files."""
        words = handler.path.strip('/').split('/')
        if words[:2] == ['api', 'models']:
            self._describe(handler, '/'.join(words[2:4]), words[5] if words[4:] else 'main')
            return
        folder = self.models.get('/'.join(words[:2]))
        file = folder / words[-1] if folder and words[2:4] == ['resolve', COMMIT] else None
        if file is None or not file.is_file():
            _send(handler, 404, b'', {'X-Error-Code': 'EntryNotFound'})
            return
        content = file.read_bytes()
        headers = {'X-Repo-Commit': COMMIT, 'ETag': hashlib.sha1(content).hexdigest()}
        if handler.command == 'GET':
            self.requests.append(words[-1])
            self.pause.wait(60)
            content = self.damage(content)
        _send(handler, 200, content, headers)

    def _describe(self, handler, name: str, revision: str) -> None:
        if name not in self.models:
            _send(handler, 404, b'', {'X-Error-Code': 'RepoNotFound'})
        elif revision not in REVISIONS:
            _send(handler, 404, b'', {'X-Error-Code': 'RevisionNotFound'})
        else:
            files = [{'rfilename': file.name} for file in sorted(self.models[name].iterdir())]
            answer = {'id': name, 'sha': COMMIT, 'siblings': files}
            _send(handler, 200, json.dumps(answer).encode(), {})


def _send(handler, status: int, content: bytes, headers: dict[str, str]) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header('Content-Length', str(len(content)))
    handler.end_headers()
    if handler.command == 'GET':
        with contextlib.suppress(ConnectionError):  # the client was killed
            handler.wfile.write(content)


@contextlib.contextmanager
def serve(models: dict[str, pathlib.Path]) -> Iterator[Hub]:
    """Runs a hub until the end of the context."""
    hub = Hub(models)

    class Handler(http.server.BaseHTTPRequestHandler):
        do_GET = do_HEAD = lambda self: hub.answer(self)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        hub.url = f'http://127.0.0.1:{server.server_port}'
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def use(monkeypatch, url: str) -> None:
    """Makes a hub that of this process, whose client has read HF_ENDPOINT already."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url, 1)
    monkeypatch.setattr(constants, 'ENDPOINT', url)
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
