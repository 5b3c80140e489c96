"""Start the device plugin: `python -m device_plugin --help`."""

import os
import sys

from device_plugin import app, main, settings

if __name__ == "__main__":
    status = main.run_until_stopped("device_plugin", "hami-device-plugin", settings.parse, app.Plugin)
    sys.stdout.flush()
    os._exit(status)  # A thread that a hung driver holds must not keep the process.
