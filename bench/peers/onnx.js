'use strict';
// ONNX models written by hand: the few fields of onnx.proto that compare.js needs, in protobuf's wire format.

/** An integer as protobuf's varint. */
function varint(n) {
  const bytes = [];
  for (; n >= 128; n = Math.floor(n / 128)) bytes.push(n % 128 + 128);
  bytes.push(n);
  return Buffer.from(bytes);
}
/** A field: its number, and an integer (wire type 0), or text, bytes or a message (wire type 2). */
function field(number, value) {
  if (typeof value === 'number') return Buffer.concat([varint(number * 8), varint(value)]);
  const bytes = Buffer.from(value);
  return Buffer.concat([varint(number * 8 + 2), varint(bytes.length), bytes]);
}
const message = (...fields) => Buffer.concat(fields.flat());

/** A ValueInfoProto: a tensor's name and shape. Types: 1 float32, 6 int32, 7 int64. */
function value(name, shape, type = 1) {
  const dims = message(shape.map(n => field(1, message(field(1, n)))));
  return message(field(1, name), field(2, message(field(1, message(field(1, type), field(2, dims))))));
}
/** A TensorProto that holds a Float32Array, or a Uint8Array. */
function constant(name, shape, data) {
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  return message(shape.map(n => field(1, n)), field(2, data instanceof Uint8Array ? 2 : 1), field(8, name), field(9, bytes));
}
/** A NodeProto with one output or several; attributes are integers. */
function node(type, inputs, output, attributes = {}, domain = '') {
  const outputs = [output].flat();
  const attribute = ([name, n]) => field(5, message(field(1, name), field(3, n), field(20, 2)));
  return message(inputs.map(name => field(1, name)), outputs.map(name => field(2, name)), field(3, outputs[0]), field(4, type),
                 Object.entries(attributes).map(attribute), field(7, domain));
}
/** A ModelProto: opset 17, and version 1 of com.microsoft. */
function model({inputs, outputs, nodes, constants = []}) {
  const graph = message(nodes.map(n => field(1, n)), field(2, 'graph'), constants.map(c => field(5, c)),
                        inputs.map(i => field(11, i)), outputs.map(o => field(12, o)));
  const opset = (domain, version) => field(8, message(field(1, domain), field(2, version)));
  return message(field(1, 8), field(2, 'attn'), field(7, graph), opset('', 17), opset('com.microsoft', 1));
}

const attentionNode = (inputs, output, heads, causal) => node(
    'MultiHeadAttention', inputs, output, {num_heads: heads, unidirectional: causal ? 1 : 0}, 'com.microsoft');

/** com.microsoft's MultiHeadAttention of q, k, v [B,S,H*D]. */
function attentionModel(B, S, H, D, causal) {
  const shape = [B, S, H * D];
  return model({inputs: ['q', 'k', 'v'].map(name => value(name, shape)), outputs: [value('y', shape)],
                nodes: [attentionNode(['q', 'k', 'v'], 'y', H, causal)]});
}

/** LlamaAttention: four MatMul + Add, and MultiHeadAttention. weights: [in,out] and bias, four times. */
function layerModel(B, S, E, H, weights) {
  const shape = [B, S, E], nodes = [], constants = [];
  const linear = (from, to, {weight, bias}) => {
    constants.push(constant(`${to}_w`, [E, E], weight), constant(`${to}_b`, [E], bias));
    nodes.push(node('MatMul', [from, `${to}_w`], `${to}_x`), node('Add', [`${to}_x`, `${to}_b`], to));
  };
  ['q', 'k', 'v'].forEach((name, i) => linear('x', name, weights[i]));
  nodes.push(attentionNode(['q', 'k', 'v'], 'context', H, false));
  linear('context', 'y', weights[3]);
  return model({inputs: [value('x', shape)], outputs: [value('y', shape)], nodes, constants});
}

/** What GroupQueryAttention is given: q, k, v [B,S,heads*D], and `capacity` rows of keys and values so far. */
function groupQueryInputs(B, S, H, G, D, capacity) {
  const cache = [B, G, capacity, D];
  return [value('q', [B, S, H * D]), value('k', [B, S, G * D]), value('v', [B, S, G * D]), value('past_key', cache),
          value('past_value', cache), value('seqlens_k', [B], 6), value('total_sequence_length', [], 6)];
}
/** com.microsoft's GroupQueryAttention, which is causal. Past and present may be one buffer of the caller's. */
function groupQueryModel(B, S, H, G, D, capacity) {
  const cache = [B, G, capacity, D], outputs = ['y', 'present_key', 'present_value'];
  const inputs = ['q', 'k', 'v', 'past_key', 'past_value', 'seqlens_k', 'total_sequence_length'];
  return model({inputs: groupQueryInputs(B, S, H, G, D, capacity),
                outputs: [value('y', [B, S, H * D]), value('present_key', cache), value('present_value', cache)],
                nodes: [node('GroupQueryAttention', inputs, outputs, {num_heads: H, kv_num_heads: G}, 'com.microsoft')]});
}

/** com.microsoft's MatMulNBits: y [M,N] = x [M,K] wT, w in blocks of 32 with a scale each; inputs rounded to 8 bits as well. */
function quantisedModel(M, N, K, bits, {packed, scales}) {
  const attributes = {K, N, bits, block_size: 32, accuracy_level: 4};
  return model({inputs: [value('x', [M, K])], outputs: [value('y', [M, N])],
                constants: [constant('w', [N, K / 32, 4 * bits], packed), constant('scales', [N * K / 32], scales)],
                nodes: [node('MatMulNBits', ['x', 'w', 'scales'], 'y', attributes, 'com.microsoft')]});
}

/** A model that takes these inputs (ValueInfoProtos) and does nothing with them: what a call costs by itself. */
function emptyModel(inputs, first, rank) {
  return model({inputs, outputs: [value('y', [rank], 7)], nodes: [node('Shape', [first], 'y')]});
}
const floats = (names, shape) => names.map(name => value(name, shape));

module.exports = {attentionModel, layerModel, groupQueryInputs, groupQueryModel, quantisedModel, emptyModel, floats};
