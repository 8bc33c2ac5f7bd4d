"""Start the page: ``python app/main.py [--model demo] [--gates folder] [--host 127.0.0.1] [--port 7860]``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gradio as gr
    from live import Desk
    from tools import Tools

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

HERE = Path(__file__).parent
WRITTEN = HERE / "options.txt"  # options for where no command line can be given, which overrules them
ZEROGPU = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
MOST_BYTES = 20 << 20  # of a picture
SPACES_PROXIES = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16"  # what stands between huggingface.co and a Space


def main() -> None:
    """Read the options, load the model once and serve the page until interrupted."""
    options = read_options()
    if ZEROGPU:
        from zerogpu import Bench  # before anything touches CUDA
    else:
        from bench import Bench

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
        sys.exit(f"{options.model}: {error}")

    from learned import gates_in, weight_bytes
    from live import Desk
    from page import build_page

    from sinkgate.loading import DEMO

    shipped = options.gates or (DEMO.parent / "gates" if options.model == "demo" else None)
    learned = gates_in(shipped, vlm) if shipped else []
    desk = Desk(vlm, learned, Bench(vlm))
    page = build_page(desk)
    tools = serve_tools(desk) if options.mcp else None
    page.queue(max_size=64)
    try:
        launch(page, options.host, options.port, max(MOST_BYTES, weight_bytes(vlm)), options.behind_proxy, tools)
    except OSError as error:  # the port is taken, or the address is not this machine's
        sys.exit(f"http://{options.host}:{options.port} cannot be served: {error}")


def serve_tools(desk: Desk) -> Tools:
    """The tool for assistants; ends the program where its package is missing."""
    try:
        from tools import Tools
    except ImportError as error:
        sys.exit(f"--mcp needs a package that is not here: pip install -e '.[mcp]' ({error})")
    return Tools(desk)


def launch(
    page: gr.Blocks, host: str, port: int, max_file_size: int, proxies: str = "", tools: Tools | None = None
) -> None:
    """Serve the page behind its guard until interrupted; no file that is uploaded has more bytes than that."""
    import guard
    from page import theme

    os.environ["FORWARDED_ALLOW_IPS"] = proxies  # whose word on visitors' addresses the server takes
    guards = guard.middleware(
        guard.Limits(file_bytes=max_file_size),
        local=host in ("127.0.0.1", "::1", "localhost") and not proxies,
        proxied=bool(proxies),
        on_space="SPACE_ID" in os.environ,
        scripts=guard.scripts_of(head().encode()),
        mcp=tools is not None,
    )
    more: dict[str, Any] = {"routes": [tools.route], "lifespan": tools.lifespan} if tools else {}
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        allowed_paths=[],
        max_file_size=max_file_size,
        show_error=False,
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,
        footer_links=["api"],
        theme=theme(),
        head=head(),
        mcp_server=False,  # Gradio's, which fetches addresses and reads files; ours is in `tools`
        app_kwargs={"middleware": guards, **more},
    )


def head() -> str:
    """Style and shared script as written: Gradio rewrites the selectors of what comes in as ``css``."""
    style = (HERE / "style.css").read_text(encoding="utf-8")
    script = (HERE / "components" / "shared.js").read_text(encoding="utf-8")
    return f"<style>{style}</style><script>{script}</script>"


def read_options() -> argparse.Namespace:
    """The command line, with Gradio's environment variables as defaults."""
    parser = argparse.ArgumentParser(description="Ask a vision-language model, move its sinks, watch what changes.")
    parser.add_argument("--model", default="demo", help="demo, a Hub id or a folder (default: %(default)s)")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub; main if left out")
    parser.add_argument("--device", help="cpu, cuda, ...; a GPU when there is one if left out")
    parser.add_argument("--device-map", help="auto: spread the model over GPUs, memory and disk, as far as needed")
    parser.add_argument("--dtype", help="float32, bfloat16, float16; the checkpoint's own if left out")
    parser.add_argument("--quantize", help="4bit or 8bit, by bitsandbytes")
    parser.add_argument(
        "--gates",
        type=folder,
        help="a folder of folders of learned gates, offered to every visitor (default: those of the demo model)",
    )
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"))
    port = os.environ.get("GRADIO_SERVER_PORT") or os.environ.get("PORT") or "7860"
    parser.add_argument("--port", type=int, default=port)
    parser.add_argument(
        "--behind-proxy",
        metavar="ADDRESSES",
        default=SPACES_PROXIES if "SPACE_ID" in os.environ else "",
        help="the proxies in front, as addresses or networks between commas, whose X-Forwarded-For is believed "
        "(default: none; on a Space, its own)",
    )
    parser.add_argument(
        "--mcp", action="store_true", help="offer a tool to assistants, by the Model Context Protocol at /gradio_api/mcp"
    )
    written = WRITTEN.read_text(encoding="utf-8").split() if WRITTEN.exists() else []
    return parser.parse_args([*written, *sys.argv[1:]])


def folder(name: str) -> Path:
    """An option that names a folder."""
    if not (path := Path(name)).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {name}")
    return path


if __name__ == "__main__":
    main()
