/* The ranks of one column and the numbers that come with them, in one go and without the GIL.

   Covers: what `dpipe.kernels.ranks` needs of a host column, to the same bits as its NumPy way
   (`dpipe.kernels.ordering`), which is the reference.
   Does not cover: columns that are not contiguous or not in this machine's byte order, a device.

   1. Every cell has a key: 64 bits that compare, without a sign, as the cells do.
   2. A column of few values, each alone in an equal-width bucket, is counted.
   3. For any other, a key's distance from the lowest stands before the row number in a 64-bit
      entry, without the bits that are 0 in all of them and those for which there is no room.
      Entries are parted by their highest bits and sorted digit by digit (radix sort); what
      became equal for want of room is settled by the keys themselves.
   4. A walk along the order gives scores, fingerprint, and what is said of the values.

   Only the limited API is used, and only instructions that every machine of its kind has. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    PICKED = 4,      /* values that are asked for by their place in the order */
    BLOCK = 1024,    /* cells looked at together */
    BUCKET_BITS = 16, /* at most; so many counters fit into the second-level cache */
    PART_BITS = 11,  /* so that float64 are parted by sign and exponent */
    LONG = 4096,     /* entries that are parted first */
    DIGIT_BITS = 8,  /* so that the places written to stay in the first-level cache */
    SMALL = 512,     /* entries that one digit nearly sorts */
    MEDIUM = 1 << 15, /* entries that two digits nearly sort; more take three */
    TINY = 16,       /* entries that are sorted by insertion */
    FEW = 4          /* rows a value, from which on sums run over the distinct values */
};

#define SIGN (UINT64_C(1) << 63)
#define INFINITE UINT64_C(0x7FF0000000000000)

typedef struct {
    const void *cells;
    char format; /* of the buffer protocol */
    size_t size; /* bytes of a cell */
    size_t n;
    const uint8_t *present; /* which cells hold a value, or NULL: all */
    double quantiles[2];

    float *scores;
    uint8_t *valid;

    uint64_t low, high, differing; /* keys, and the bits in which any two of them differ */
    int length, shift, exact;      /* bits of a distance, bits cut off it, whether all were 0 */
    int row_bits;                  /* of an entry */
    size_t n_valid, n_unique, top_count;
    size_t wanted[PICKED]; /* ascending places in the order: those about the quantiles */
    uint32_t picked[PICKED]; /* rows that hold what lies there */
    size_t n_picked;
    int exponent;
    double mean, rest, square; /* of values times 2**-exponent */
    uint64_t rank_sum, missing_sum;

    PyObject *sort; /* what sorts the first entries, or NULL */
    PyThreadState *thread;
} Column;

/* Keys */

static inline uint64_t key_of_double(double cell)
{
    uint64_t bits;
    cell += 0.0; /* turns -0.0 into 0.0 */
    memcpy(&bits, &cell, sizeof bits);
    return bits ^ ((0 - (bits >> 63)) | SIGN); /* the bits of negative numbers count downwards */
}

static inline double double_of_key(uint64_t key)
{
    uint64_t bits = key ^ (((key >> 63) - 1) | SIGN);
    double cell;
    memcpy(&cell, &bits, sizeof cell);
    return cell;
}

static inline int is_number(uint64_t key)
{
    const uint64_t lowest = ~(INFINITE | SIGN) + 1, infinite = INFINITE | SIGN;
    return key - lowest < infinite - lowest; /* not so for NaN of either sign */
}

static int is_real(const Column *c)
{
    return c->format == 'd' || c->format == 'f';
}

#define LOAD(TYPE, KEY)                                                                            \
    do {                                                                                           \
        const TYPE *cells = (const TYPE *)c->cells + start;                                        \
        for (size_t i = 0; i < count; i++)                                                         \
            keys[i] = KEY(cells[i]);                                                               \
    } while (0)
#define REAL(cell) key_of_double((double)(cell))
#define SIGNED(cell) ((uint64_t)(int64_t)(cell) ^ SIGN)
#define UNSIGNED(cell) ((uint64_t)(cell))

static void load_keys(const Column *c, size_t start, size_t count, uint64_t *keys)
{
    if (c->format == 'd')
        LOAD(double, REAL);
    else if (c->format == 'f')
        LOAD(float, REAL);
    else if (strchr("bhilq", c->format) != NULL)
        switch (c->size) {
        case 1: LOAD(int8_t, SIGNED); break;
        case 2: LOAD(int16_t, SIGNED); break;
        case 4: LOAD(int32_t, SIGNED); break;
        default: LOAD(int64_t, SIGNED);
        }
    else
        switch (c->size) {
        case 1: LOAD(uint8_t, UNSIGNED); break;
        case 2: LOAD(uint16_t, UNSIGNED); break;
        case 4: LOAD(uint32_t, UNSIGNED); break;
        default: LOAD(uint64_t, UNSIGNED);
        }
}

/* Puts `other` in the place of what belongs to missing cells. */
static void replace_missing(const Column *c, size_t start, size_t n, uint64_t *numbers, uint64_t other)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t mask = 0 - (uint64_t)c->valid[start + i];
        numbers[i] = (numbers[i] & mask) | (other & ~mask);
    }
}

/* The key of one cell. */
static inline uint64_t key_at(const Column *c, uint32_t row)
{
    uint64_t key;
    if (c->format == 'd')
        return key_of_double(((const double *)c->cells)[row]);
    load_keys(c, row, 1, &key);
    return key;
}

/* Values of whole numbers are distances from the lowest: exact up to 2**53, and then still near. */
static inline double value_of(const Column *c, uint64_t key)
{
    return is_real(c) ? double_of_key(key) : (double)(key - c->low);
}

static int bit_length(uint64_t number)
{
    int bits = 0;
    for (; number; number >>= 1)
        bits++;
    return bits;
}

/* Walks over the rows, a block at a time. */
#define FOR_BLOCKS(c, start, count)                                                                \
    for (size_t start = 0, count; count = (c)->n - start < BLOCK ? (c)->n - start : BLOCK,         \
                start < (c)->n; start += count)

typedef struct {
    uint64_t low, high, all_ones, any_ones; /* extremes, and what all or any have */
} Range;

static const Range NOTHING = {UINT64_MAX, 0, UINT64_MAX, 0};

static Range range_of(const uint64_t *low, const uint64_t *high, size_t n)
{
    Range r = NOTHING;
    for (size_t i = 0; i < n; i++) {
        r.low = low[i] < r.low ? low[i] : r.low;
        r.high = high[i] > r.high ? high[i] : r.high;
        r.all_ones &= low[i];
        r.any_ones |= high[i];
    }
    return r;
}

/* Marks the cells of a block that hold a value; the keys of others become neutral. */
static size_t find_valid(const Column *c, size_t start, size_t n, uint64_t *low, uint64_t *high)
{
    uint8_t *valid = c->valid + start;
    size_t found = 0;
    memset(valid, 1, n);
    if (c->present != NULL)
        memcpy(valid, c->present + start, n);
    if (is_real(c))
        for (size_t i = 0; i < n; i++)
            valid[i] &= (uint8_t)is_number(low[i]);
    for (size_t i = 0; i < n; i++) {
        uint64_t mask = 0 - (uint64_t)valid[i];
        high[i] = low[i] & mask;
        low[i] |= ~mask;
        found += valid[i];
    }
    return found;
}

/* Finds the valid cells, and the range of their keys. */
static void survey(Column *c)
{
    uint64_t keys[BLOCK], others[BLOCK];
    Range all = NOTHING;
    FOR_BLOCKS(c, start, count) {
        size_t found = count;
        load_keys(c, start, count, keys);
        Range r = range_of(keys, keys, count);
        if (c->present == NULL && (!is_real(c) || (is_number(r.low) && is_number(r.high))))
            memset(c->valid + start, 1, count);
        else {
            found = find_valid(c, start, count, keys, others);
            r = range_of(keys, others, count);
        }
        c->n_valid += found;
        all.low = r.low < all.low ? r.low : all.low;
        all.high = r.high > all.high ? r.high : all.high;
        all.all_ones &= r.all_ones;
        all.any_ones |= r.any_ones;
    }
    c->low = all.low;
    c->high = all.high;
    c->differing = all.all_ones ^ all.any_ones;
}

/* Fingerprint: every row has a weight; the ranks times the weights, and the weights of the missing
   rows, are added up modulo 2**64. Reversed ranks have the negated sum. */

static inline uint64_t weight_of(uint64_t row)
{
    uint64_t mixed = (row + 1) * UINT64_C(0x9E3779B97F4A7C15);
    mixed = (mixed ^ mixed >> 32) * UINT64_C(0xD6E8FEB86659FD93);
    return mixed ^ mixed >> 32;
}

static void weigh_missing(Column *c)
{
    uint64_t sum = 0;
    for (size_t row = 0; row < c->n; row++)
        sum += weight_of(row) & ((uint64_t)c->valid[row] - 1);
    memset(c->scores, 0, c->n * sizeof *c->scores);
    c->missing_sum = sum;
}

/* Ranks: for the average rank r of m valid rows, 2 r - 1 - m is a whole number. */

static inline float score_of(const Column *c, int64_t centred)
{
    return (float)((double)centred / (double)(2 * c->n_valid));
}

static inline int64_t centred_rank(const Column *c, size_t start, size_t end)
{
    return (int64_t)(start + end) - (int64_t)c->n_valid;
}

/* Takes down a distinct value, found in `row`, that fills the places `start` to `end`. */
static inline void add_value(Column *c, uint64_t *distinct, uint32_t row, size_t start, size_t end)
{
    size_t count = end - start;
    distinct[c->n_unique++] = (uint64_t)count << 32 | row;
    c->top_count = count > c->top_count ? count : c->top_count;
    while (c->n_picked < PICKED && c->wanted[c->n_picked] < end)
        c->picked[c->n_picked++] = row;
}

/* Finds the places between which the quantiles lie. */
static void want_quantiles(Column *c)
{
    size_t last = c->n_valid - 1;
    for (int i = 0; i < PICKED; i++) {
        size_t place = (size_t)floor((double)last * c->quantiles[i / 2]) + i % 2;
        int at = i;
        place = place < last ? place : last;
        for (; at > 0 && c->wanted[at - 1] > place; at--)
            c->wanted[at] = c->wanted[at - 1];
        c->wanted[at] = place;
    }
}

/* Counting */

typedef struct {
    uint64_t key;
    uint32_t row, count; /* the first row, and how many; then twice the rank */
} Bucket;

/* Ranks a column whose values lie in different buckets; returns whether it is one. The bucket of a
   value never decreases with it, so that buckets are in the order of the values. */
static int rank_by_counting(Column *c, uint64_t *room)
{
    int bits = bit_length(c->n / 8);
    size_t last = ((size_t)1 << (bits < BUCKET_BITS ? bits : BUCKET_BITS)) - 1, place = 0;
    double low = value_of(c, c->low), width = value_of(c, c->high) - low;
    double per_unit = width > 0 ? (double)last / width : 0;
    if (!isfinite(width) || !isfinite(per_unit))
        return 0;
    Bucket *buckets = (Bucket *)(room + c->n / 2 + 1); /* after the cells' numbers */
    uint32_t *numbers = (uint32_t *)room;
    memset(buckets, 0, (last + 2) * sizeof *buckets);
    FOR_BLOCKS(c, start, count) {
        uint64_t keys[BLOCK];
        load_keys(c, start, count, keys);
        if (c->n_valid < c->n)
            replace_missing(c, start, count, keys, c->low);
        for (size_t i = 0; i < count; i++)
            numbers[start + i] = (uint32_t)(int32_t)((value_of(c, keys[i]) - low) * per_unit);
        if (c->n_valid < c->n) /* a bucket for missing cells */
            for (size_t i = 0; i < count; i++)
                numbers[start + i] = c->valid[start + i] ? numbers[start + i] : (uint32_t)last + 1;
        for (size_t i = 0; i < count; i++) {
            Bucket *bucket = &buckets[numbers[start + i]];
            if (bucket->count == 0) {
                bucket->key = keys[i];
                bucket->row = (uint32_t)(start + i);
            } else if (bucket->key != keys[i])
                return 0;
            bucket->count++;
        }
    }
    uint64_t *distinct = (uint64_t *)(buckets + last + 2), sum = 0;
    for (size_t at = 0; at <= last; at++)
        if (buckets[at].count) {
            size_t end = place + buckets[at].count;
            add_value(c, distinct, buckets[at].row, place, end);
            buckets[at].count = (uint32_t)(int32_t)centred_rank(c, place, end);
            place = end;
        }
    buckets[last + 1].count = 0;
    for (size_t row = 0; row < c->n; row++) {
        int32_t centred = (int32_t)buckets[numbers[row]].count;
        c->scores[row] = score_of(c, centred);
        sum += (uint64_t)(int64_t)centred * weight_of(row);
    }
    c->rank_sum = sum;
    memmove(room, distinct, c->n_unique * sizeof *distinct);
    return 1;
}

/* Sorting */

static void insertion_sort(uint64_t *entries, size_t n)
{
    for (size_t i = 1, at; i < n; i++) {
        uint64_t moving = entries[i];
        for (at = i; at > 0 && entries[at - 1] > moving; at--)
            entries[at] = entries[at - 1];
        entries[at] = moving;
    }
}

/* Sorts entries that agree in all but their low `bits`, of which the lowest `row_bits` ascend. */
static void sort_entries(uint64_t *entries, size_t n, int bits, int row_bits, uint64_t *spare)
{
    uint32_t starts[3][1 << DIGIT_BITS];
    int digits = n <= SMALL ? 1 : n <= MEDIUM ? 2 : 3, shift = bits - digits * DIGIT_BITS;
    uint64_t *from = entries, *to = spare;
    if (n <= TINY) {
        insertion_sort(entries, n);
        return;
    }
    shift = shift < row_bits ? row_bits : shift;
    memset(starts, 0, digits * sizeof starts[0]);
    for (size_t i = 0; i < n; i++)
        for (int digit = 0; digit < digits; digit++)
            starts[digit][(uint8_t)(entries[i] >> shift >> digit * DIGIT_BITS)]++;
    for (int digit = 0; digit < digits; digit++) {
        int by = shift + digit * DIGIT_BITS;
        uint32_t *start = starts[digit], total = 0;
        if (by >= 64 || start[(uint8_t)(from[0] >> by)] == n)
            continue; /* all agree in this digit */
        for (int value = 0; value < 1 << DIGIT_BITS; value++) {
            uint32_t count = start[value];
            start[value] = total;
            total += count;
        }
        for (size_t i = 0; i < n; i++)
            to[start[(uint8_t)(from[i] >> by)]++] = from[i];
        uint64_t *sorted = to;
        to = from;
        from = sorted;
    }
    if (from != entries)
        memcpy(entries, from, n * sizeof *entries);
    if (shift == row_bits)
        return;
    for (size_t start = 0, end; start < n; start = end) {
        for (end = start + 1; end < n && (entries[end] ^ entries[start]) >> shift == 0;)
            end++;
        if (end - start > 1)
            sort_entries(entries + start, end - start, shift, row_bits, spare);
    }
}

static inline uint32_t row_of(const Column *c, uint64_t entry)
{
    return (uint32_t)(entry & (((uint64_t)1 << c->row_bits) - 1));
}

/* Orders entries of equal distances by the keys, which differ in the bits that were cut off.
   Returns whether all are equal. */
static int settle(const Column *c, uint64_t *entries, size_t n, uint64_t *spare)
{
    uint64_t low = UINT64_MAX, high = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t key = spare[i] = key_at(c, row_of(c, entries[i]));
        low = key < low ? key : low;
        high = key > high ? key : high;
    }
    if (low == high)
        return 1;
    for (size_t i = 0; i < n; i++)
        entries[i] = (spare[i] - low) << c->row_bits | row_of(c, entries[i]);
    sort_entries(entries, n, c->row_bits + bit_length(high - low), c->row_bits, spare);
    return 0;
}

/* Ranks entries of one value, which fill the places `start` to `end`. */
static void rank_value(Column *c, const uint64_t *entries, size_t start, size_t end,
                       uint64_t *distinct)
{
    int64_t centred = centred_rank(c, start, end);
    float score = score_of(c, centred);
    uint64_t weights = 0;
    uint32_t first = row_of(c, entries[0]);
    for (size_t i = 0; i < end - start; i++) {
        uint32_t row = row_of(c, entries[i]);
        c->scores[row] = score;
        weights += weight_of(row);
    }
    c->rank_sum += (uint64_t)centred * weights;
    add_value(c, distinct, first, start, end);
}

/* Ranks up to BLOCK entries of as many values, which fill the places from `start` on. */
static void rank_untied(Column *c, const uint64_t *entries, size_t start, int n, uint64_t *distinct)
{
    float scores[BLOCK];
    int64_t lowest = centred_rank(c, start, start + 1);
    double first = (double)lowest, width = (double)(2 * c->n_valid);
    uint64_t sum = 0, centred = (uint64_t)lowest;
    for (int i = 0; i < n; i++)
        scores[i] = (float)((first + 2 * i) / width);
    for (int i = 0; i < n; i++, centred += 2) {
        uint32_t row = row_of(c, entries[i]);
        c->scores[row] = scores[i];
        sum += centred * weight_of(row);
    }
    c->rank_sum += sum;
    for (; c->n_picked < PICKED && c->wanted[c->n_picked] < start + n; c->n_picked++)
        c->picked[c->n_picked] = row_of(c, entries[c->wanted[c->n_picked] - start]);
    for (int i = 0; i < n; i++)
        distinct[c->n_unique + i] = (uint64_t)1 << 32 | row_of(c, entries[i]);
    c->n_unique += n;
    c->top_count = c->top_count ? c->top_count : 1;
}

/* How many of the first entries, one after the other, are alone with their distances. */
static inline int count_untied(const Column *c, const uint64_t *entries, size_t n)
{
    int most = n < BLOCK ? (int)n : BLOCK, alone = 0;
    while (alone < most && !((size_t)alone + 1 < n &&
                             (entries[alone] ^ entries[alone + 1]) >> c->row_bits == 0))
        alone++;
    return alone;
}

/* The end of the run of equal distances that begins at `start`. */
static inline size_t run_end(const Column *c, const uint64_t *entries, size_t start, size_t n)
{
    size_t end = start + 1;
    while (end < n && (entries[end] ^ entries[start]) >> c->row_bits == 0)
        end++;
    return end;
}

/* Ranks the sorted entries of the places `first` and on. Distinct values are taken down in `all`,
   over entries that are done with. */
static void rank_part(Column *c, uint64_t *all, size_t first, size_t n, uint64_t *spare)
{
    uint64_t *entries = all + first;
    for (size_t start = 0, end; start < n; start = end) {
        int untied = count_untied(c, entries + start, n - start);
        if (untied) {
            end = start + (size_t)untied;
            rank_untied(c, entries + start, first + start, untied, all);
            continue;
        }
        end = run_end(c, entries, start, n);
        if (c->exact || settle(c, entries + start, end - start, spare))
            rank_value(c, entries + start, first + start, first + end, all);
        else
            for (size_t from = start, to; from < end; from = to) {
                to = run_end(c, entries, from, end);
                rank_value(c, entries + from, first + from, first + to, all);
            }
    }
}

/* Chooses what an entry holds of a distance. */
static void shorten(Column *c)
{
    int length = bit_length(c->high - c->low);
    int idle = c->differing ? bit_length(c->differing & (0 - c->differing)) - 1 : 0;
    c->row_bits = bit_length(c->n - 1);
    c->exact = length - idle <= 63 - c->row_bits;
    c->shift = c->exact ? idle : length - (63 - c->row_bits);
    c->length = length - c->shift;
}

/* Loads shortened distances; missing cells lie one beyond the largest that there can be. */
static void load_distances(const Column *c, size_t start, size_t count, uint64_t *distances)
{
    uint64_t beyond = (uint64_t)1 << c->length;
    load_keys(c, start, count, distances);
    for (size_t i = 0; i < count; i++)
        distances[i] = (distances[i] - c->low) >> c->shift;
    if (c->n_valid < c->n)
        replace_missing(c, start, count, distances, beyond);
}

/* Lets Python sort the entries: NumPy does it faster where it has instructions for it. */
static int sort_outside(Column *c)
{
    PyEval_RestoreThread(c->thread);
    PyObject *done = PyObject_CallFunction(c->sort, "n", (Py_ssize_t)c->n_valid);
    Py_XDECREF(done);
    c->thread = PyEval_SaveThread();
    return done != NULL;
}

/* Makes the entries, parted by all but the low `bits` of their distances; missing cells come last.
   On return `starts` are the ends of the parts. */
static void part_entries(Column *c, uint64_t *entries, int bits, size_t parts, uint32_t *starts)
{
    uint64_t distances[BLOCK];
    if (parts == 1)
        starts[1] = (uint32_t)c->n_valid;
    else {
        FOR_BLOCKS(c, start, count) {
            load_distances(c, start, count, distances);
            for (size_t i = 0; i < count; i++)
                starts[(distances[i] >> bits) + 1]++;
        }
        for (size_t part = 0; part < parts; part++)
            starts[part + 1] += starts[part];
    }
    FOR_BLOCKS(c, start, count) {
        load_distances(c, start, count, distances);
        for (size_t i = 0; i < count; i++)
            entries[starts[distances[i] >> bits]++] = distances[i] << c->row_bits | (start + i);
    }
}

/* Returns whether nothing failed. */
static int rank_by_sorting(Column *c, uint64_t *entries, uint64_t *spare)
{
    uint32_t starts[(1 << PART_BITS) + 2] = {0}; /* the last for missing cells */
    shorten(c);
    int part_bits = c->n < LONG || c->sort != NULL ? 0
                    : c->length < PART_BITS        ? c->length
                                                   : PART_BITS;
    int bits = c->length - part_bits;
    size_t parts = (size_t)1 << part_bits;
    part_entries(c, entries, bits, parts, starts);
    if (c->sort != NULL && !sort_outside(c))
        return 0;
    for (size_t part = 0, first = 0; part < parts; first = starts[part++]) {
        size_t n = starts[part] - first;
        if (n > 1 && c->sort == NULL)
            sort_entries(entries + first, n, bits + c->row_bits, c->row_bits, spare);
        rank_part(c, entries, first, n, spare);
    }
    return 1;
}

/* Mean and variance */

/* The next values, and how often each counts: distinct ones, or the cells as they stand. */
static size_t next_values(const Column *c, const uint64_t *distinct, size_t *at, double *values,
                          double *counts)
{
    uint64_t keys[BLOCK];
    size_t found = 0, many;
    if (distinct != NULL) {
        for (; found < BLOCK && *at < c->n_unique; found++, ++*at) {
            values[found] = value_of(c, key_at(c, (uint32_t)distinct[*at]));
            counts[found] = (double)(distinct[*at] >> 32);
        }
        return found;
    }
    for (; found < BLOCK && *at < c->n; *at += many) {
        many = c->n - *at < BLOCK - found ? c->n - *at : BLOCK - found;
        load_keys(c, *at, many, keys);
        if (c->n_valid < c->n) {
            size_t kept = 0;
            for (size_t i = 0; i < many; i++) {
                keys[kept] = keys[i];
                kept += c->valid[*at + i];
            }
            for (size_t i = 0; i < kept; i++)
                values[found + i] = value_of(c, keys[i]);
            found += kept;
        } else {
            for (size_t i = 0; i < many; i++)
                values[found + i] = value_of(c, keys[i]);
            found += many;
        }
    }
    return found;
}

/* Adds up terms pairwise, after filling up with 0. */
static double fold(double *terms, size_t count)
{
    for (size_t i = count; i < BLOCK; i++)
        terms[i] = 0;
    for (size_t half = BLOCK / 2; half; half /= 2)
        for (size_t i = 0; i < half; i++)
            terms[i] += terms[i + half];
    return terms[0];
}

static void describe(Column *c, const uint64_t *distinct)
{
    double low = value_of(c, c->low), high = value_of(c, c->high), m = (double)c->n_valid;
    double values[BLOCK], counts[BLOCK], squared[BLOCK], total = 0, rests = 0, squares = 0;
    size_t count, at = 0;
    (void)frexp(fmax(fabs(low), fabs(high)), &c->exponent);
    c->exponent = c->exponent < -1000 ? -1000 : c->exponent > 1000 ? 1000 : c->exponent;
    double scale = ldexp(1.0, -c->exponent);
    if (c->n_unique * FEW > c->n_valid)
        distinct = NULL;
    while ((count = next_values(c, distinct, &at, values, counts))) {
        for (size_t i = 0; i < count; i++)
            values[i] *= scale;
        for (size_t i = 0; distinct != NULL && i < count; i++)
            values[i] *= counts[i];
        total += fold(values, count);
    }
    double mean = fmin(fmax(total / m, low * scale), high * scale);
    at = 0;
    while ((count = next_values(c, distinct, &at, values, counts))) {
        for (size_t i = 0; i < count; i++) {
            values[i] = values[i] * scale - mean;
            squared[i] = values[i] * values[i];
        }
        for (size_t i = 0; distinct != NULL && i < count; i++) {
            values[i] *= counts[i];
            squared[i] *= counts[i];
        }
        rests += fold(values, count);
        squares += fold(squared, count);
    }
    c->mean = mean;
    c->rest = rests / m;
    c->square = squares / m;
}

static void rank(Column *c, uint64_t *room)
{
    survey(c);
    if (c->n_valid < c->n)
        weigh_missing(c);
    if (c->n_valid == 0)
        return;
    want_quantiles(c);
    if (rank_by_counting(c, room) || rank_by_sorting(c, room, room + c->n))
        describe(c, room);
}

/* Python */

static int sign_of_first(const Column *c)
{
    for (size_t row = 0; row < c->n; row++)
        if (c->scores[row] != 0)
            return c->scores[row] < 0 ? -1 : 1;
    return 0;
}

static PyObject *result_of(const Column *c)
{
    uint64_t picked[PICKED] = {0};
    for (size_t i = 0; i < c->n_picked; i++)
        picked[i] = key_at(c, c->picked[i]);
    return Py_BuildValue(
        "nnn(KK)(KKKK)(dddi)iKK", (Py_ssize_t)c->n_valid, (Py_ssize_t)c->n_unique,
        (Py_ssize_t)c->top_count, (unsigned long long)c->low, (unsigned long long)c->high,
        (unsigned long long)picked[0], (unsigned long long)picked[1],
        (unsigned long long)picked[2], (unsigned long long)picked[3], c->mean, c->rest, c->square,
        c->exponent, sign_of_first(c), (unsigned long long)c->rank_sum,
        (unsigned long long)c->missing_sum);
}

enum { CELLS, PRESENT, SCORES, VALID, ROOM, BUFFERS };

/* Whether the arrays are what they must be, so that nothing is read or written beyond them. */
static int fits(const Py_buffer *views)
{
    const Py_buffer *cells = &views[CELLS];
    size_t n = cells->itemsize > 0 ? (size_t)(cells->len / cells->itemsize) : 0;
    return cells->format != NULL && strlen(cells->format) == 1 &&
           strchr("dfbhilq?BHILQ", cells->format[0]) != NULL && n <= INT32_MAX &&
           (views[PRESENT].obj == NULL || (size_t)views[PRESENT].len == n) &&
           (size_t)views[SCORES].len == n * sizeof(float) && (size_t)views[VALID].len == n &&
           (size_t)views[ROOM].len == (2 * n + 16) * sizeof(uint64_t);
}

static PyObject *rank_with(Py_buffer *views, double low, double high, PyObject *sort)
{
    const Py_buffer *cells = &views[CELLS];
    Column column = {
        .cells = cells->buf,
        .format = cells->format[0],
        .size = (size_t)cells->itemsize,
        .n = (size_t)(cells->len / cells->itemsize),
        .present = views[PRESENT].buf,
        .quantiles = {low, high},
        .sort = sort == Py_None ? NULL : sort,
        .scores = views[SCORES].buf,
        .valid = views[VALID].buf,
    };
    column.thread = PyEval_SaveThread();
    rank(&column, views[ROOM].buf);
    PyEval_RestoreThread(column.thread);
    return PyErr_Occurred() ? NULL : result_of(&column);
}

PyDoc_STRVAR(rank_doc,
"rank(cells, present, scores, valid, room, low, high, sort)\n--\n\n"
"Rank `cells` (n,), of which `present` (n,) bool or None says which hold a value.\n\n"
"Fills `scores` (n,) float32 and `valid` (n,) bool and works in `room` (2 n + 16,) uint64. `low` and\n"
"`high` are the quantiles whose neighbours are asked for; ``sort(m)``, unless `sort` is None, sorts\n"
"the first m numbers of `room`. Returns: valid cells, distinct values,\n"
"rows of the commonest; lowest and highest key, and those of the neighbours by their places; mean of\n"
"the values times 2**-exponent, mean and mean square of what that leaves, exponent; the first sign;\n"
"the sums of ranks and missing cells, weighted.");

static PyObject *py_rank(PyObject *self, PyObject *args)
{
    static const int flags[BUFFERS] = {PyBUF_FORMAT | PyBUF_C_CONTIGUOUS, PyBUF_SIMPLE,
                                       PyBUF_WRITABLE, PyBUF_WRITABLE, PyBUF_WRITABLE};
    PyObject *arrays[BUFFERS], *sort, *result = NULL;
    Py_buffer views[BUFFERS];
    double low, high;
    int got = 0;
    (void)self;
    memset(views, 0, sizeof views);
    if (!PyArg_ParseTuple(args, "OOOOOddO", &arrays[0], &arrays[1], &arrays[2], &arrays[3],
                          &arrays[4], &low, &high, &sort))
        return NULL;
    if (!(low >= 0 && low <= high && high <= 1)) {
        PyErr_SetString(PyExc_ValueError, "quantiles lie between 0 and 1");
        return NULL;
    }
    for (; got < BUFFERS; got++)
        if (!(got == PRESENT && arrays[got] == Py_None) &&
            PyObject_GetBuffer(arrays[got], &views[got], flags[got]) < 0)
            break;
    if (got == BUFFERS) {
        if (fits(views))
            result = rank_with(views, low, high, sort);
        else
            PyErr_SetString(PyExc_ValueError, "arrays of other types or lengths are needed");
    }
    while (got--)
        if (views[got].obj != NULL)
            PyBuffer_Release(&views[got]);
    return result;
}

static PyMethodDef methods[] = {{"rank", py_rank, METH_VARARGS, rank_doc}, {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_ranking", "The ranks of one column, compiled.", 0, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__ranking(void)
{
    return PyModuleDef_Init(&module);
}
