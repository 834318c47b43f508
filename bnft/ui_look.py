"""How the page looks and how it is served: theme, style sheet, script, and every way out to other servers closed.

Knows nothing about what is on the page.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import gradio as gr

from bnft.errors import UserError
from bnft.http_guard import MAX_BODY, HttpGuard
from bnft.http_limits import HttpLimits
from bnft.ui_parts import script_strings

ASSETS = Path(__file__).parent / "assets"
THREADS = 200  # one for every reply that is being written or waited for, and some for the rest
SESSIONS = 200  # open pages of which Gradio keeps what was shown last, a tenth of a megabyte each
LOCAL_FONTS = ("Hind Siliguri", "Noto Sans Bengali", "system-ui", "sans-serif")


def style_sheet() -> str:
    return (ASSETS / "page.css").read_text(encoding="utf-8")


def head() -> str:
    script = (ASSETS / "page.js").read_text(encoding="utf-8").replace("WORDS_HERE", script_strings())
    return f"<script>{script}</script>"


def theme() -> gr.themes.Base:
    fonts = [gr.themes.Font(name) for name in LOCAL_FONTS]
    return gr.themes.Base(
        primary_hue="teal", neutral_hue="stone", font=fonts, font_mono=[gr.themes.Font("monospace")], text_size="lg"
    ).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_text_color="white",
    )


def launch_options() -> dict[str, Any]:
    """Arguments of `Blocks.launch` that every way of serving shares."""
    gr.set_static_paths([ASSETS / "fonts"])
    return {
        "theme": theme(),
        "css": style_sheet(),
        "head": head(),
        "footer_links": [],  # its words are English only; the page links to the API itself
        "run_history": False,  # Gradio would keep every call in a second place
        "enable_monitoring": False,
        "ssr_mode": False,
        "pwa": False,
        "max_threads": THREADS,
        "state_session_capacity": SESSIONS,
        # As Starlette's Middleware is unpacked: class, arguments, named arguments.
        "app_kwargs": {
            "middleware": [(HttpLimits, (), {}), (HttpGuard, (), {"fonts": ASSETS / "fonts"})],
            "max_body_size": MAX_BODY,
        },
        "show_error": False,
        "quiet": True,
    }


def serve(demo: gr.Blocks, host: str | None, port: int | None, share: bool, **more: Any) -> str:
    """The address at which the page is served from now on; `more` beats `launch_options`."""
    address = {"server_name": host, "server_port": port, "share": share or None}
    try:
        _, local, public = demo.launch(prevent_thread_lock=True, **address, **(launch_options() | more))
    except OSError as error:
        raise UserError(
            f"cannot listen on {host or '127.0.0.1'}:{port or 7860}: {error}", "Choose another --host or --port."
        ) from error
    demo.share = False  # or Gradio would serve the page for shared ones, whose script comes from another server
    return public or local


def stay_open(demo: gr.Blocks) -> None:
    """Waits until SIGTERM or Ctrl+C ends the program, then closes the page."""
    try:
        threading.Event().wait()
    finally:
        demo.close(verbose=False)
