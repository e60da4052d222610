"""Windows of recordings that last for hours: where something happens, found without decoding."""
