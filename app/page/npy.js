// Arrays as npy files (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html), read and written.

export const NPY = "application/x-npy";
const KINDS = {
  f4: [4, "getFloat32"], f8: [8, "getFloat64"], u1: [1, "getUint8"], i1: [1, "getInt8"], u2: [2, "getUint16"],
  i2: [2, "getInt16"], u4: [4, "getUint32"], i4: [4, "getInt32"], u8: [8, "getBigUint64"], i8: [8, "getBigInt64"],
};

export function isNpy(buffer) {
  return String.fromCharCode(...new Uint8Array(buffer.slice(0, 6)).subarray(1)) === "NUMPY";
}

/** {rows, columns, row(i)} of an npy file of numbers; null where it is none that is read here. */
export function readNpy(buffer) {
  const bytes = new Uint8Array(buffer);
  if (bytes.length < 12 || !isNpy(buffer)) return null;
  const view = new DataView(buffer);
  const [start, length] = bytes[6] === 1 ? [10, view.getUint16(8, true)] : [12, view.getUint32(8, true)];
  const header = new TextDecoder().decode(bytes.subarray(start, start + length));
  const [, order, kind] = /'descr':\s*'([<>|=])(\w\d)'/.exec(header) ?? [];
  const shape = (/'shape':\s*\(([^)]*)\)/.exec(header)?.[1] ?? "").split(",").filter((part) => part.trim()).map(Number);
  if (!KINDS[kind] || shape.length < 1 || shape.length > 2) return null;
  const [rows, columns] = shape.length === 1 ? [1, shape[0]] : shape;
  const [size, read] = KINDS[kind];
  const base = start + length;
  if (bytes.length < base + rows * columns * size) return null;
  const isLittle = order !== ">";
  const isFortran = /'fortran_order':\s*True/.test(header);
  const at = (i, j) => view[read](base + size * (isFortran ? j * rows + i : i * columns + j), isLittle);
  return { rows, columns, row: (i) => Float32Array.from({ length: columns }, (_, j) => Number(at(i, j))) };
}

/** One row of numbers as an npy file of float32. */
export function writeNpy(row) {
  const told = `{'descr': '<f4', 'fortran_order': False, 'shape': (1, ${row.length}), }`;
  const length = Math.ceil((10 + told.length + 1) / 64) * 64 - 10;
  const header = new TextEncoder().encode(`\x93NUMPY\x01\x00  ${told.padEnd(length - 1)}\n`).subarray(1);
  header[0] = 0x93; // which UTF-8 writes as two bytes
  new DataView(header.buffer, header.byteOffset).setUint16(8, length, true);
  return new Blob([header, Float32Array.from(row)]);
}
