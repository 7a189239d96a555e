"""The command `serve`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number


def serve(
    *files: Annotated[str, Parameter(help="weights files or exported files; NAME=FILE gives a name of your own")],
    host: Annotated[str, Parameter(help="address to serve; 0.0.0.0: all of this host")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="port; 0: any free one", validator=Number(gte=0, lte=65535))] = 8000,
    max_batch: Annotated[int, Parameter(help="most images computed at a time", validator=Number(gte=1))] = 8,
    queue: Annotated[int, Parameter(help="most requests that wait", validator=Number(gte=1))] = 64,
    threads: Annotated[
        int | None, Parameter(help="of the network; default: usable cores", validator=Number(gte=1))
    ] = None,
    token_file: Annotated[Path | None, Parameter(help="a file with the token that clients must send")] = None,
    tls_cert: Annotated[
        Path | None, Parameter(help="certificate (PEM); with --tls-key the server speaks HTTPS")
    ] = None,
    tls_key: Annotated[Path | None, Parameter(help="key of the certificate (PEM)")] = None,
    suppression: Annotated[str | None, Parameter(help="on or off, for all files; default: as in each file")] = None,
) -> None:
    """Answer over HTTP what `predict` would say, until SIGTERM or Ctrl-C."""
    from yoloyard.common.errors import UsageError
    from yoloyard.runtimes.extras import needed

    if not files:
        raise UsageError("say which files to serve: yoloyard serve FILE [FILE ...]")
    for module in ("starlette", "uvicorn", "python_multipart", "prometheus_client"):
        needed(module, "serve")
    from yoloyard.serving.run import serve as run

    run(files, host, port, max_batch, queue, threads, token_file, tls_cert, tls_key, suppression)
