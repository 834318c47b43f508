"""How the page looks and how it is served: theme, style sheet, script, and every way out to other servers closed.

Knows nothing about what is on the page.
"""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import gradio as gr

from bnft.errors import Interrupted, UserError
from bnft.ui_parts import script_strings

ASSETS = Path(__file__).parent / "assets"
THREADS = 200  # one for every reply that is being written or waited for, and some for the rest
SESSIONS = 200  # pages of which Gradio keeps its own record, a tenth of a megabyte each; nothing of ours is in it
LOCAL_FONTS = ("Hind Siliguri", "Noto Sans Bengali", "system-ui", "sans-serif")

# Nothing but this server is ever asked for anything, whatever a reply or a message holds.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; object-src 'none'"
)


def style_sheet() -> str:
    """page.css, with the addresses of the bundled font filled in; relative, so that it works behind any prefix."""
    css = (ASSETS / "page.css").read_text(encoding="utf-8")
    return css.replace("FONTS/", f"gradio_api/file={(ASSETS / 'fonts').as_posix()}/")


def head() -> str:
    script = (ASSETS / "page.js").read_text(encoding="utf-8").replace("WORDS_HERE", script_strings())
    return (
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="referrer" content="no-referrer"><script>{script}</script>'
    )


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
        "max_file_size": "1kb",
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
    return public or local


def stay_open(demo: gr.Blocks) -> None:
    """Waits until SIGTERM or Ctrl+C ends the program, then closes the page."""
    signal.signal(signal.SIGTERM, _end)
    try:
        threading.Event().wait()
    finally:
        demo.close(verbose=False)


def _end(number: int, frame) -> None:
    raise Interrupted(128 + number, "ended")
