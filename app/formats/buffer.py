"""A body as the formats are given it: in memory, or mapped from the file that it was received into."""

import mmap

Buffer = bytearray | mmap.mmap
