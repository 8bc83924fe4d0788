"""The embedded vision-language model: a small model trained here, with a closed picture vocabulary.

It sees rendered pictures of a few shapes and reads a few dozen words; anything else it was never shown.
"""
