"""Bouts in the files of annotation programs: read, written, matched with windows."""
