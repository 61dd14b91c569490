// Arrays as npy files (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html), read and written, and
// as safetensors files (https://huggingface.co/docs/safetensors), read.

export const NPY = "application/x-npy";
const KINDS = { // bytes of a number, how they are read and, where that is no number yet, what makes it one
  f2: [2, "getUint16", half], bf2: [2, "getUint16", (bits) => new Float32Array(Uint32Array.of(bits << 16).buffer)[0]],
  f4: [4, "getFloat32"], f8: [8, "getFloat64"], u1: [1, "getUint8"], i1: [1, "getInt8"], u2: [2, "getUint16"],
  i2: [2, "getInt16"], u4: [4, "getUint32"], i4: [4, "getInt32"], u8: [8, "getBigUint64"], i8: [8, "getBigInt64"],
};
const TENSORS = { F16: "f2", BF16: "bf2", F32: "f4", F64: "f8", U8: "u1", I8: "i1", U16: "u2", I16: "i2", U32: "u4", I32: "i4", U64: "u8", I64: "i8" };

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
  return rowsOf(view, start + length, kind, shape, order !== ">", /'fortran_order':\s*True/.test(header));
}

/** The same of a safetensors file: of its tensor `data`, or the only one. */
export function readSafetensors(buffer) {
  if (buffer.byteLength < 8) return null;
  const view = new DataView(buffer);
  const start = 8 + Number(view.getBigUint64(0, true));
  if (start > buffer.byteLength) return null;
  try {
    const { __metadata__, ...tensors } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, start - 8)));
    const names = Object.keys(tensors);
    const { dtype, shape, data_offsets: [from] } = tensors[names.length === 1 ? names[0] : "data"];
    return rowsOf(view, start + from, TENSORS[dtype], shape);
  } catch { // its header is no JSON, or has no such tensor
    return null;
  }
}

function rowsOf(view, base, kind, shape, isLittle = true, isFortran = false) {
  if (!KINDS[kind] || shape.length < 1 || shape.length > 2) return null;
  const [rows, columns] = shape.length === 1 ? [1, shape[0]] : shape;
  const [size, read, made = Number] = KINDS[kind];
  if (view.byteLength < base + rows * columns * size) return null;
  const at = (i, j) => made(view[read](base + size * (isFortran ? j * rows + i : i * columns + j), isLittle));
  return { rows, columns, row: (i) => Float32Array.from({ length: columns }, (_, j) => at(i, j)) };
}

/** A float16 by its bits: browsers have no getFloat16 everywhere. */
function half(bits) {
  const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
  const size = exponent === 31 ? (fraction ? NaN : Infinity)
    : exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction;
  return bits & 0x8000 ? -size : size;
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
