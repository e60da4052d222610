"""Tests of a frozen encoder: k-NN, linear and attentive probes, effective rank."""
