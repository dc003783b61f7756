"""Whether a record set is still as it was written: its checksums, and those in its frames."""

from astrollava_jax import files
from astrollava_jax.data.tfrecord import (
    CHECKSUMS,
    FOOTER_BYTES,
    HEADER_BYTES,
    checksum,
    payload_length,
    unframe,
)


def checksum_faults(folder: files.Where) -> list[str]:
    """What of a set's files is not as `checksums.json` says, or that this is not whole."""
    path = files.join(folder, CHECKSUMS)
    try:
        stated = files.read_json_object(path)
        whole = files.as_json(stated) == files.read_bytes(path)
        whole = whole and all(set(s) == {"bytes", "sha256"} for s in stated.values())
    except (ValueError, TypeError):
        whole, stated = False, {}
    if not whole:
        return [f"{path}: expected a list of checksums as it was written, found another"]
    faults = []
    for name, expected in stated.items():
        where = files.join(folder, name)
        found = checksum(where) if "/" not in name and files.exists(where) else None
        if found != expected:
            faults.append(f"{where}: expected {expected}, found {found or 'no file'}")
    return faults


def frame_faults(shard: files.Where) -> tuple[int, list[str]]:
    """How many records of a shard are whole, and what is wrong with the first that is not."""
    reader, size, position, count = files.RangeReader(shard), files.size_bytes(shard), 0, 0
    while position < size:
        try:
            length = payload_length(reader.read(position, HEADER_BYTES))
            whole = HEADER_BYTES + length + FOOTER_BYTES
            if position + whole > size:
                raise ValueError(f"the file ends inside it, {position + whole - size} bytes early")
            unframe(reader.read(position, whole))
        except ValueError as error:
            return count, [f"{shard}: record {count} at byte {position}: {error}"]
        position, count = position + whole, count + 1
    return count, []
