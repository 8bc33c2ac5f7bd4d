"""Start the page: ``python app/main.py [--model demo] [--host 127.0.0.1] [--port 7860]``."""

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


def main() -> None:
    """Read the options, load the model once and serve the page until interrupted."""
    options = read_options()

    import sinkgate as sg

    try:
        vlm = sg.load(options.model)
    except (sg.SinkgateError, OSError) as error:
        sys.exit(f"{options.model}: {error}")

    from live import Desk
    from page import build_page

    page = build_page(Desk(vlm))
    page.queue(max_size=64)
    try:
        launch(page, options.host, options.port)
    except OSError as error:  # the port is taken, or the address is not this machine's
        sys.exit(f"http://{options.host}:{options.port} cannot be served: {error}")


def launch(page: gr.Blocks, host: str, port: int) -> None:
    """Serve the page to this machine's visitors until interrupted."""
    from page import theme

    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        allowed_paths=[],
        max_file_size="20mb",
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
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=os.environ.get("GRADIO_SERVER_PORT", "7860"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
