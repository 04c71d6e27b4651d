"""The command lines, one file each; stlm.py lists them."""
