/* Orthonormal Legendre functions of the ranks of some columns, without the GIL.

   Covers: what `dpipe.kernels.basis.legendre` needs of host arrays, to the same bits as its NumPy
   way, which is the reference.
   Does not cover: other types, a device.

   A strip of a column goes through all functions while it lies in the first-level cache; the
   functions themselves are written once and read where they were just written.

   Only the limited API is used, and only instructions that every machine of its kind has. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <math.h>
#include <string.h>

enum { STRIP = 1024 };

/* Fills one strip of a column: `functions` rows, `apart` cells from one to the next. The steps of
   the recurrence are pairs (ahead, back); what stands before the first function is 1, or 0 where
   the cell is missing. */
#define DEFINE_EXPAND(NAME, REAL)                                                                  \
    static void NAME(const char *score_bytes, const char *valid_bytes, char *bytes, size_t apart,  \
                     size_t functions, size_t n, const double *steps)                              \
    {                                                                                              \
        const REAL *scores = (const REAL *)score_bytes, *valid = (const REAL *)valid_bytes;        \
        const REAL root = (REAL)sqrt(3.0);                                                         \
        REAL argument[STRIP], first[STRIP], *values = (REAL *)bytes;                               \
        const REAL *before = first, *last = values;                                                \
        for (size_t i = 0; i < n; i++)                                                             \
            argument[i] = scores[i] * 2;                                                           \
        for (size_t i = 0; i < n; i++)                                                             \
            first[i] = valid == NULL ? 1 : valid[i];                                               \
        for (size_t i = 0; i < n; i++)                                                             \
            values[i] = argument[i] * root;                                                        \
        for (size_t k = 1; k < functions; k++) {                                                   \
            const REAL ahead = (REAL)steps[2 * k - 2], back = (REAL)steps[2 * k - 1];              \
            REAL *now = (REAL *)(bytes + k * apart);                                               \
            for (size_t i = 0; i < n; i++)                                                         \
                now[i] = argument[i] * last[i] * ahead - before[i] * back;                         \
            before = last;                                                                         \
            last = now;                                                                            \
        }                                                                                          \
    }

DEFINE_EXPAND(expand_floats, float)
DEFINE_EXPAND(expand_doubles, double)

enum { SCORES, VALID, VALUES, STEPS, BUFFERS };

static int is_row(const Py_buffer *view, const char *format, int dimensions)
{
    return view->ndim == dimensions && view->format != NULL && !strcmp(view->format, format) &&
           view->strides[dimensions - 1] == view->itemsize;
}

/* Whether the arrays are what they must be, so that nothing is read or written beyond them. */
static int fits(const Py_buffer *views)
{
    const Py_buffer *scores = &views[SCORES], *valid = &views[VALID], *values = &views[VALUES];
    const char *format = scores->format;
    if (format == NULL || (strcmp(format, "f") && strcmp(format, "d")))
        return 0;
    return is_row(scores, format, 2) && is_row(values, format, 3) && values->shape[1] > 0 &&
           values->shape[0] == scores->shape[0] && values->shape[2] == scores->shape[1] &&
           (valid->obj == NULL || (is_row(valid, format, 2) &&
                                   valid->shape[0] == scores->shape[0] &&
                                   valid->shape[1] == scores->shape[1])) &&
           is_row(&views[STEPS], "d", 1) && views[STEPS].shape[0] >= 2 * values->shape[1] - 2;
}

static void expand(const Py_buffer *views)
{
    const Py_buffer *scores = &views[SCORES], *valid = &views[VALID], *values = &views[VALUES];
    size_t size = (size_t)scores->itemsize, rows = (size_t)scores->shape[1];
    for (Py_ssize_t column = 0; column < scores->shape[0]; column++)
        for (size_t start = 0; start < rows; start += STRIP) {
            const char *mask = valid->obj == NULL
                ? NULL : (const char *)valid->buf + column * valid->strides[0] + start * size;
            (size == sizeof(float) ? expand_floats : expand_doubles)(
                (const char *)scores->buf + column * scores->strides[0] + start * size, mask,
                (char *)values->buf + column * values->strides[0] + start * size,
                (size_t)values->strides[1], (size_t)values->shape[1],
                rows - start < STRIP ? rows - start : STRIP, views[STEPS].buf);
        }
}

PyDoc_STRVAR(expand_doc,
"expand(scores, valid, values, steps)\n--\n\n"
"Fill `values` (b, k, r) with the first k functions of `scores` (b, r), both float32 or both\n"
"float64; they are 0 where `valid` (b, r), of the same type, is, or nowhere if that is None.\n"
"`steps` (2 k - 2 or more,) float64 holds the two factors of each step of the recurrence.");

static PyObject *py_expand(PyObject *self, PyObject *args)
{
    static const int flags[BUFFERS] = {PyBUF_RECORDS_RO, PyBUF_RECORDS_RO, PyBUF_RECORDS,
                                       PyBUF_RECORDS_RO};
    PyObject *arrays[BUFFERS], *result = NULL;
    Py_buffer views[BUFFERS];
    int got = 0;
    (void)self;
    memset(views, 0, sizeof views);
    if (!PyArg_ParseTuple(args, "OOOO", &arrays[0], &arrays[1], &arrays[2], &arrays[3]))
        return NULL;
    for (; got < BUFFERS; got++)
        if (!(got == VALID && arrays[got] == Py_None) &&
            PyObject_GetBuffer(arrays[got], &views[got], flags[got]) < 0)
            break;
    if (got == BUFFERS) {
        if (fits(views)) {
            Py_BEGIN_ALLOW_THREADS
            expand(views);
            Py_END_ALLOW_THREADS
            result = Py_NewRef(Py_None);
        } else
            PyErr_SetString(PyExc_ValueError, "arrays of other types or shapes are needed");
    }
    while (got--)
        if (views[got].obj != NULL)
            PyBuffer_Release(&views[got]);
    return result;
}

static PyMethodDef methods[] = {{"expand", py_expand, METH_VARARGS, expand_doc},
                                {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_basis", "Legendre functions of ranks, compiled.", 0, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__basis(void)
{
    return PyModuleDef_Init(&module);
}
