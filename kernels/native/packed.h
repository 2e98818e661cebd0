/* The order of packed weights (`pack` in ../packed_linear.py) and how the loops over them are cut. */
#pragma once

#define TILE 16    /* columns of y in a tile; on AMX also rows of x */
#define DEPTH 32   /* columns of x (bfloat16) in a tile */
#define CHUNK 8    /* tiles of x's columns taken at once */
#define SPAN 32    /* tiles of y's columns whose sums a thread holds */
#define PANEL 192  /* rows of x between two passes over the weights */
#define AHEAD 2048 /* bytes fetched ahead of their use */
