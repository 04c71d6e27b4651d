"""Measuring on other devices: behind ssh, behind adb, and in a browser."""
