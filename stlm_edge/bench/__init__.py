"""Measuring bundles on devices: parity, latency, throughput, memory and accuracy."""
