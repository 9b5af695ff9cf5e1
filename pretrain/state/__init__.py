"""The layout-free checkpoint format. Reading needs neither DeepSpeed nor a process group."""
