"""Start the monitor: `python -m device_plugin.monitor --help`."""

import os
import sys

from device_plugin import main
from device_plugin.monitor import app, settings

if __name__ == "__main__":
    status = main.run_until_stopped("device_plugin.monitor", "hami-monitor", settings.parse, app.Monitor)
    sys.stdout.flush()
    os._exit(status)  # A thread that a hung driver holds must not keep the process.
