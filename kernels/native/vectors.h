/* Vectors of WIDE numbers, a register of the instructions that vectors.c compiles for: GCC's and Clang's vector types.
 * Included by vectors.c with WIDE and NAME set.
 *
 * A bfloat16 is the upper half of a float32, so a word of two of them becomes two floats by a shift and a mask, and no
 * instruction for bfloat16 is needed.
 */
typedef float NAME(floats) __attribute__((vector_size(4 * WIDE), aligned(4), may_alias));
typedef uint32_t NAME(words) __attribute__((vector_size(4 * WIDE), aligned(4), may_alias));
typedef int32_t NAME(integers) __attribute__((vector_size(4 * WIDE)));
typedef uint16_t NAME(halves) __attribute__((vector_size(2 * WIDE), aligned(2), may_alias));
