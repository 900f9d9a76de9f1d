"""Hugging Face folders: config.json, tensor names, safetensors."""
