"""Start the page: ``python app/main.py [--model demo] [--gates folder] [--host 127.0.0.1] [--port 7860]``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gradio as gr

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

HERE = Path(__file__).parent
SHIPPED = HERE.parent / "sinkgate" / "demo" / "gates"  # of the demo model
MOST_BYTES = 20 << 20  # of a picture


def main() -> None:
    """Read the options, load the model once and serve the page until interrupted."""
    options = read_options()

    import sinkgate as sg

    try:
        vlm = sg.load(
            options.model,
            device=options.device,
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

    shipped = options.gates or (SHIPPED if options.model == "demo" else None)
    page = build_page(Desk(vlm, gates_in(shipped, vlm) if shipped else []))
    page.queue(max_size=64)
    try:
        launch(page, options.host, options.port, max(MOST_BYTES, weight_bytes(vlm)))
    except OSError as error:  # the port is taken, or the address is not this machine's
        sys.exit(f"http://{options.host}:{options.port} cannot be served: {error}")


def launch(page: gr.Blocks, host: str, port: int, max_file_size: int) -> None:
    """Serve the page to this machine's visitors until interrupted; nobody uploads more bytes than that at once."""
    from page import theme

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
    parser.add_argument("--port", type=int, default=os.environ.get("GRADIO_SERVER_PORT", "7860"))
    return parser.parse_args()


def folder(name: str) -> Path:
    """An option that names a folder."""
    if not (path := Path(name)).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {name}")
    return path


if __name__ == "__main__":
    main()
