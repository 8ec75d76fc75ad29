"""The web page (`dicetalk app`): a portrait, a voice and an emotion, in a browser.

What it does is plain functions that know nothing of Gradio; `page` lays it out and
connects it, `server` starts it.
"""
