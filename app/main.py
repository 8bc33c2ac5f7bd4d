"""Start the page: ``python app/main.py [--model demo] [--gates folder] [--host 127.0.0.1] [--port 7860]``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .engine import Engine
    from .mcp_server import McpServer

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported, see sinkgate/_threads.py
# Gradio builds a table of its last 10,000 events after each event, for a page that this server does not have
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000000")

HERE = Path(__file__).parent
ZEROGPU = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
MAX_BYTES = 40 << 20  # of a picture; phones write up to 30 MB
SPACES_PROXIES = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16"  # the proxies between huggingface.co and a Space


def main(arguments: Sequence[str] | None = None) -> None:
    """Load the model once and serve the page until interrupted.

    Args:
        arguments: options as words; those of the command line where None.
    """
    options = read_options(arguments)
    if ZEROGPU:
        from .backend_zerogpu import Backend  # before anything touches CUDA
    else:
        from .backend import Backend

    import sinkgate as sg

    try:
        vlm = sg.load(
            options.model,
            device="cpu" if ZEROGPU else options.device,
            device_map=options.device_map,
            dtype=options.dtype,
            quantize=options.quantize,
            revision=options.revision,
        )
    except (sg.SinkgateError, OSError) as error:
        from sinkgate.cli.options import as_options

        sys.exit(f"{options.model}: {as_options(str(error))}")

    from sinkgate.models.loading import built_in_gates

    from .engine import Engine
    from .gate_library import gates_in, weight_bytes
    from .metrics import write_logs
    from .page import build_page
    from .server import Server

    shipped = options.gates or built_in_gates(options.model)
    learned = gates_in(shipped, vlm) if shipped else []
    engine = Engine(vlm, learned, Backend(vlm))
    page = build_page(engine)
    mcp = mcp_server(engine) if options.mcp else None
    write_logs(options.log_level)
    server = Server(page, engine, max(MAX_BYTES, weight_bytes(vlm)), mcp)
    try:
        if options.metrics_port:
            server.metrics.serve_metrics(options.metrics_port)
    except OSError as error:  # the port is taken
        sys.exit(f"port {options.metrics_port} cannot be served: {error.strerror}; give another --metrics-port")
    try:
        server.start(options.host, options.port, options.behind_proxy)
    except OSError as error:  # a port is taken, or the address is not this machine's
        reason = error.strerror or "the port is taken, or the address is not this machine's"
        sys.exit(f"http://{options.host}:{options.port} cannot be served: {reason}; give another --port or --host")
    server.run_until_stopped()


def mcp_server(engine: Engine) -> McpServer:
    """Return the server of the Model Context Protocol; exit where its package is missing."""
    try:
        from .mcp_server import McpServer
    except ImportError as error:
        sys.exit(f"--mcp needs a package that is not installed: pip install 'sinkgate[mcp]' ({error})")
    return McpServer(engine)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse options, with Gradio's environment variables as defaults."""
    parser = argparse.ArgumentParser(
        description="Ask a vision-language model questions while you scale its attention sinks, in a browser."
    )
    parser.add_argument(
        "--model", default="demo-large", help="demo-large, demo-small, a Hub id or a folder (default: %(default)s)"
    )
    parser.add_argument("--revision", help="branch, tag or commit on the Hub; main by default")
    parser.add_argument("--device", help="cpu, cuda, mps, ...; a GPU if there is one by default, or auto")
    parser.add_argument("--device-map", help="auto: spread the model over GPUs, memory and disk, as far as needed")
    parser.add_argument("--dtype", help="float32, bfloat16, float16; the checkpoint's own by default")
    parser.add_argument("--quantize", help="4bit or 8bit, by bitsandbytes")
    parser.add_argument(
        "--gates",
        type=folder,
        help="a folder of folders of learned gates, offered to every user (default: those of the demo model)",
    )
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"))
    port = os.environ.get("GRADIO_SERVER_PORT") or os.environ.get("PORT") or "7860"
    parser.add_argument("--port", type=int, default=port)
    parser.add_argument(
        "--behind-proxy",
        metavar="ADDRESSES",
        default=SPACES_PROXIES if "SPACE_ID" in os.environ else "",
        help="addresses or networks of trusted proxies, separated by commas, whose X-Forwarded-For is used "
        "(default: none; on a Space, its own)",
    )
    parser.add_argument(
        "--mcp",
        action="store_true",
        help="serve a tool for assistants, by the Model Context Protocol at /gradio_api/mcp",
    )
    parser.add_argument(
        "--metrics-port", type=int, help="serve Prometheus metrics to this machine at this port (default: none)"
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="warning",
        help="level of the JSON lines on stderr: warning for errors, info for every job on the model (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def folder(name: str) -> Path:
    """Return the path of an option that names a folder."""
    if not (path := Path(name)).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {name}")
    return path


if __name__ == "__main__":
    if not __package__:  # run as a script: import the package that this file belongs to
        sys.path[0] = str(HERE.parent)
        from app.main import main
    main()
