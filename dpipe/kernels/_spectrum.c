/* The largest squared singular value of each of many small matrices, without the GIL.

   Covers: what `dpipe.kernels.spectrum.largest_square` needs of host arrays, to the same bits as its
   NumPy way, which is the reference.
   Does not cover: matrices of more than MOST rows, a device.

   Cyclic Jacobi on M M', until what lies off the diagonal is NEGLIGIBLE beside the trace. LANES
   matrices go through it side by side, so that the compiler can work on several of them with one
   instruction; one that is done passes further sweeps unchanged.

   Only the limited API is used, and only instructions that every machine of its kind has. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <math.h>
#include <string.h>

enum { LANES = 16, MOST = 12, MOST_SWEEPS = 50 };

static const double NEGLIGIBLE = 1e-16;

typedef double lanes[LANES];

/* Turns each symmetric matrix so that a[p][q] becomes 0, and adds what stood there to `moved`. */
static void rotate(lanes a[MOST][MOST], size_t d, size_t p, size_t q, const lanes negligible,
                   lanes moved)
{
    lanes cosine, sine;
    for (size_t l = 0; l < LANES; l++) {
        const double off = fabs(a[p][q][l]) > negligible[l] ? a[p][q][l] : 0;
        const double apart = a[q][q][l] - a[p][p][l];
        const double wide = apart + copysign(sqrt(apart * apart + 4 * off * off), apart);
        const double tangent = 2 * off / (wide != 0 ? wide : 1);
        cosine[l] = 1 / sqrt(tangent * tangent + 1);
        sine[l] = tangent * cosine[l];
        a[p][p][l] -= tangent * off;
        a[q][q][l] += tangent * off;
        a[p][q][l] = a[q][p][l] = 0;
        moved[l] += fabs(off);
    }
    for (size_t r = 0; r < d; r++)
        if (r != p && r != q)
            for (size_t l = 0; l < LANES; l++) {
                const double x = a[r][p][l], y = a[r][q][l];
                a[p][r][l] = a[r][p][l] = cosine[l] * x - sine[l] * y;
                a[q][r][l] = a[r][q][l] = sine[l] * x + cosine[l] * y;
            }
}

/* Makes each symmetric matrix diagonal. */
static void diagonalise(lanes a[MOST][MOST], size_t d)
{
    lanes negligible = {0};
    for (size_t p = 0; p < d; p++)
        for (size_t l = 0; l < LANES; l++)
            negligible[l] += a[p][p][l];
    for (size_t l = 0; l < LANES; l++)
        negligible[l] *= NEGLIGIBLE;
    for (size_t sweep = 0, left = 1; left && sweep < MOST_SWEEPS; sweep++) {
        lanes moved = {0};
        for (size_t p = 0; p + 1 < d; p++)
            for (size_t q = p + 1; q < d; q++)
                rotate(a, d, p, q, negligible, moved);
        left = 0;
        for (size_t l = 0; l < LANES; l++)
            left |= moved[l] != 0;
    }
}

/* Fills M M' of some matrices (count, d, e); lanes beyond them hold 0. */
#define DEFINE_SQUARES(NAME, REAL)                                                                 \
    static void NAME(const REAL *m, size_t count, size_t d, size_t e, lanes a[MOST][MOST])         \
    {                                                                                              \
        for (size_t p = 0; p < d; p++)                                                             \
            for (size_t q = p; q < d; q++)                                                         \
                for (size_t l = 0; l < LANES; l++) {                                               \
                    const REAL *first = m + (l * d + p) * e, *second = m + (l * d + q) * e;        \
                    double sum = 0;                                                                \
                    for (size_t k = 0; l < count && k < e; k++)                                    \
                        sum += (double)first[k] * (double)second[k];                               \
                    a[p][q][l] = a[q][p][l] = sum;                                                 \
                }                                                                                  \
    }

DEFINE_SQUARES(squares_of_floats, float)
DEFINE_SQUARES(squares_of_doubles, double)

enum { MATRICES, VALUES, BUFFERS };

static void largest(const Py_buffer *views)
{
    const Py_buffer *matrices = &views[MATRICES];
    const size_t n = (size_t)matrices->shape[0], d = (size_t)matrices->shape[1];
    const size_t e = (size_t)matrices->shape[2];
    double *values = views[VALUES].buf;
    lanes a[MOST][MOST];
    for (size_t start = 0; start < n; start += LANES) {
        const size_t count = n - start < LANES ? n - start : LANES;
        if (matrices->itemsize == sizeof(float))
            squares_of_floats((const float *)matrices->buf + start * d * e, count, d, e, a);
        else
            squares_of_doubles((const double *)matrices->buf + start * d * e, count, d, e, a);
        diagonalise(a, d);
        for (size_t l = 0; l < count; l++) {
            double most = a[0][0][l];
            for (size_t p = 1; p < d; p++)
                most = a[p][p][l] > most ? a[p][p][l] : most;
            values[start + l] = most;
        }
    }
}

/* Whether the arrays are what they must be, so that nothing is read or written beyond them. */
static int fits(const Py_buffer *views)
{
    const Py_buffer *matrices = &views[MATRICES], *values = &views[VALUES];
    return matrices->ndim == 3 && matrices->format != NULL &&
           (!strcmp(matrices->format, "f") || !strcmp(matrices->format, "d")) &&
           matrices->shape[1] > 0 && matrices->shape[1] <= MOST && values->ndim == 1 &&
           values->format != NULL && !strcmp(values->format, "d") &&
           values->shape[0] == matrices->shape[0];
}

PyDoc_STRVAR(largest_doc,
"largest_squares(matrices, values)\n--\n\n"
"Fill `values` (n,) float64 with the largest squared singular value of each of `matrices`\n"
"(n, d, e), float32 or float64 and contiguous, d <= 12.");

static PyObject *py_largest_squares(PyObject *self, PyObject *args)
{
    static const int flags[BUFFERS] = {PyBUF_ND | PyBUF_FORMAT,
                                       PyBUF_ND | PyBUF_FORMAT | PyBUF_WRITABLE};
    PyObject *arrays[BUFFERS], *result = NULL;
    Py_buffer views[BUFFERS];
    int got = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "OO", &arrays[0], &arrays[1]))
        return NULL;
    for (; got < BUFFERS; got++)
        if (PyObject_GetBuffer(arrays[got], &views[got], flags[got]) < 0)
            break;
    if (got == BUFFERS) {
        if (fits(views)) {
            Py_BEGIN_ALLOW_THREADS
            largest(views);
            Py_END_ALLOW_THREADS
            result = Py_NewRef(Py_None);
        } else
            PyErr_SetString(PyExc_ValueError, "arrays of other types or shapes are needed");
    }
    while (got--)
        PyBuffer_Release(&views[got]);
    return result;
}

static PyMethodDef methods[] = {{"largest_squares", py_largest_squares, METH_VARARGS, largest_doc},
                                {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_spectrum", "Singular values of small matrices, compiled.", 0, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__spectrum(void)
{
    return PyModuleDef_Init(&module);
}
