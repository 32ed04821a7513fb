"""``.pt2`` files, read without running code from them.

Everything outside this folder uses the functions that are imported here.
"""

from normswap.io.pt2.archive import Archive as Archive
from normswap.io.pt2.archive import BadArchive as BadArchive
from normswap.io.pt2.archive import open_archive as open_archive
from normswap.io.pt2.file import read_pt2 as read_pt2
from normswap.io.pt2.file import read_pt2_note as read_pt2_note
from normswap.io.pt2.file import refuse_pickle as refuse_pickle
from normswap.io.pt2.file import write_pt2 as write_pt2
