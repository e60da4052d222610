"""How the field judges an encoder without training it: probes of its frozen features."""
