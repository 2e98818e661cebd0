/* The Python module panoserve.kernels._native: addresses and sizes in, nothing out. ../native.py loads it. */
#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "native.h"

typedef unsigned long long address;

static PyObject *py_packed_linear(PyObject *module, PyObject *arguments) {
    address x, w, y, scratch;
    long rows, outputs, inputs;
    if (!PyArg_ParseTuple(arguments, "KKKKlll", &x, &w, &y, &scratch, &rows, &outputs, &inputs)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    packed_linear((const bf16 *)x, (const bf16 *)w, (bf16 *)y, (float *)scratch, rows, outputs, inputs);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_rope_split(PyObject *module, PyObject *arguments) {
    address qkv, rope, q, k, v;
    long tokens, streams, heads, head_dim, rotated;
    if (!PyArg_ParseTuple(arguments, "KKKKKlllll", &qkv, &rope, &q, &k, &v, &tokens, &streams, &heads, &head_dim,
                          &rotated))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    rope_split((const bf16 *)qkv, (const float *)rope, (bf16 *)q, (bf16 *)k, (bf16 *)v, tokens, streams, heads, head_dim,
               rotated);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_silu_and_mul(PyObject *module, PyObject *arguments) {
    address x, y;
    long rows, columns;
    if (!PyArg_ParseTuple(arguments, "KKll", &x, &y, &rows, &columns)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    silu_and_mul((const bf16 *)x, (bf16 *)y, rows, columns);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_decode_attention(PyObject *module, PyObject *arguments) {
    address query, start, out, starts, lengths, tables;
    long count, table_stride;
    paged_cache cache;
    float scale;
    if (!PyArg_ParseTuple(arguments, "KKKKKKllllllllf", &query, &start, &out, &starts, &lengths, &tables, &table_stride,
                          &count, &cache.heads, &cache.head_dim, &cache.block_size, &cache.block_stride,
                          &cache.head_stride, &cache.layout, &scale))
        return NULL;
    cache.start = (void *)start;
    paged_lanes lanes = {(const int32_t *)starts, (const int32_t *)lengths, (const int32_t *)tables, count, table_stride};
    Py_BEGIN_ALLOW_THREADS
    decode_attention((const bf16 *)query, &cache, (bf16 *)out, &lanes, scale);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_write_cache(PyObject *module, PyObject *arguments) {
    address key, value, start, slots;
    long tokens;
    paged_cache cache;
    if (!PyArg_ParseTuple(arguments, "KKKKlllllll", &key, &value, &start, &slots, &tokens, &cache.heads, &cache.head_dim,
                          &cache.block_size, &cache.block_stride, &cache.head_stride, &cache.layout))
        return NULL;
    cache.start = (void *)start;
    Py_BEGIN_ALLOW_THREADS
    write_cache((const bf16 *)key, (const bf16 *)value, &cache, (const int64_t *)slots, tokens);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_vector_level(PyObject *module, PyObject *nothing) { return PyLong_FromLong(vector_level()); }

static PyObject *py_use_level(PyObject *module, PyObject *arguments) {
    int level;
    if (!PyArg_ParseTuple(arguments, "i", &level)) return NULL;
    use_level(level);
    Py_RETURN_NONE;
}

static PyObject *py_level_in_use(PyObject *module, PyObject *nothing) { return PyLong_FromLong(level_in_use()); }

static PyObject *py_rms_norm(PyObject *module, PyObject *arguments) {
    address x, weight, y;
    long rows, columns;
    float epsilon;
    if (!PyArg_ParseTuple(arguments, "KKKllf", &x, &weight, &y, &rows, &columns, &epsilon)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    rms_norm((const bf16 *)x, (const bf16 *)weight, (bf16 *)y, rows, columns, epsilon);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_add_rms_norm(PyObject *module, PyObject *arguments) {
    address x, residual, weight;
    long rows, columns;
    float epsilon;
    if (!PyArg_ParseTuple(arguments, "KKKllf", &x, &residual, &weight, &rows, &columns, &epsilon)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    add_rms_norm((bf16 *)x, (bf16 *)residual, (const bf16 *)weight, rows, columns, epsilon);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_decode_layers(PyObject *module, PyObject *arguments) {
    const char *layers, *step;
    Py_ssize_t layers_size, step_size;
    if (!PyArg_ParseTuple(arguments, "y#y#", &layers, &layers_size, &step, &step_size)) return NULL;
    if (step_size != sizeof(decode_step) || layers_size % sizeof(decode_layer)) {
        PyErr_SetString(PyExc_ValueError, "the structures are not those of native.h");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    decode_layers((const decode_layer *)layers, layers_size / (long)sizeof(decode_layer), (const decode_step *)step);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_mask_below_top_k(PyObject *module, PyObject *arguments) {
    address logits, k, scratch;
    long rows, columns;
    if (!PyArg_ParseTuple(arguments, "KKKll", &logits, &k, &scratch, &rows, &columns)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    mask_below_top_k((float *)logits, (const int64_t *)k, (uint32_t *)scratch, rows, columns);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_mask_below_top_p(PyObject *module, PyObject *arguments) {
    address logits, p, keys, weights;
    long rows, columns;
    if (!PyArg_ParseTuple(arguments, "KKKKll", &logits, &p, &keys, &weights, &rows, &columns)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    mask_below_top_p((float *)logits, (const double *)p, (uint32_t *)keys, (float *)weights, rows, columns);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_group_norm_silu(PyObject *module, PyObject *arguments) {
    address x, weight, bias, y;
    long positions, channels, groups;
    int in_float;
    float epsilon;
    if (!PyArg_ParseTuple(arguments, "KKKKplllf", &x, &weight, &bias, &y, &in_float, &positions, &channels, &groups,
                          &epsilon))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    group_norm_silu((const void *)x, (const float *)weight, (const float *)bias, (void *)y, in_float, positions, channels,
                    groups, epsilon);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_conv3x3(PyObject *module, PyObject *arguments) {
    const char *task;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(arguments, "y#", &task, &size)) return NULL;
    if (size != sizeof(conv3x3_task)) {
        PyErr_SetString(PyExc_ValueError, "the structure is not that of native.h");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    conv3x3((const conv3x3_task *)task);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"packed_linear", py_packed_linear, METH_VARARGS, "packed_linear(x, packed, y, scratch, rows, outputs, inputs)"},
    {"rope_split", py_rope_split, METH_VARARGS,
     "rope_split(qkv, rope, q, k, v, tokens, streams, heads, head_dim, rotated)"},
    {"decode_attention", py_decode_attention, METH_VARARGS,
     "decode_attention(query, cache, out, starts, lengths, tables, table_stride, lanes, heads, head_dim, block_size, "
     "block_stride, head_stride, layout, scale)"},
    {"silu_and_mul", py_silu_and_mul, METH_VARARGS, "silu_and_mul(x, y, rows, columns)"},
    {"write_cache", py_write_cache, METH_VARARGS,
     "write_cache(key, value, cache, slots, tokens, heads, head_dim, block_size, block_stride, head_stride, layout)"},
    {"rms_norm", py_rms_norm, METH_VARARGS, "rms_norm(x, weight, y, rows, columns, epsilon)"},
    {"add_rms_norm", py_add_rms_norm, METH_VARARGS, "add_rms_norm(x, residual, weight, rows, columns, epsilon)"},
    {"decode_layers", py_decode_layers, METH_VARARGS, "decode_layers(layers, step)"},
    {"group_norm_silu", py_group_norm_silu, METH_VARARGS,
     "group_norm_silu(x, weight, bias, y, in_float, positions, channels, groups, epsilon)"},
    {"conv3x3", py_conv3x3, METH_VARARGS, "conv3x3(task)"},
    {"mask_below_top_k", py_mask_below_top_k, METH_VARARGS, "mask_below_top_k(logits, k, scratch, rows, columns)"},
    {"mask_below_top_p", py_mask_below_top_p, METH_VARARGS,
     "mask_below_top_p(logits, p, keys, weights, rows, columns)"},
    {"vector_level", py_vector_level, METH_NOARGS, "vector_level() -> the best level without AMX that can run here"},
    {"use_level", py_use_level, METH_VARARGS, "use_level(level)"},
    {"level_in_use", py_level_in_use, METH_NOARGS, "level_in_use() -> level"},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, methods};

PyMODINIT_FUNC PyInit__native(void) {
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddIntConstant(module, "AMX_BUILT", amx_built)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
