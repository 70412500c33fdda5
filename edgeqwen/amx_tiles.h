/* Included before all of llama.cpp when it is compiled for a processor with AMX (edgeqwen engine build).
 * GCC 12's amxtileintrin.h says that _tile_loadconfig reads 8 bytes of its 64: what ggml writes behind them is dropped
 * as dead, and the first use of a tile is an illegal instruction. A barrier before the call keeps it. */
#if defined(__AMX_TILE__) && defined(__GNUC__)
#include <immintrin.h>
#define _tile_loadconfig(config) \
    do { \
        __asm__ volatile("" : : "r"(config) : "memory"); \
        (_tile_loadconfig)(config); \
    } while (0)
#endif
