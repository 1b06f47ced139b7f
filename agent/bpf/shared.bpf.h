// What both tracking programs (tracker.bpf.c, bytes.bpf.c) have in common: the maps that the agent shares with them and the
// numbers in them, told in src/kernel/layout.rs too, and how the helpers of the kernel are called.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static __attribute__((always_inline))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name
static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
#define BPF_NOEXIST 1

#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_F_MMAPABLE 1024

// Operations of a request (low 8 bits of cmd_flags). Odd ones carry data to the disk or change it.
#define OP_READ 0
#define OP_DISCARD 3
#define OP_FIRST_PASSTHROUGH 32

// Words of CONTROL (u64 each). The generation has a cache line of its own.
#define CONTROL_GENERATION 0
#define CONTROL_LOST 8
#define CONTROL_EXTENTS 16
#define CONTROL_COUNTERS 512
#define COUNTERS_PER_DISK 8
#define COUNT_WRITES 0
#define COUNT_ISSUED_BYTES 1
#define COUNT_COMPLETED_BYTES 2
#define COUNT_REQUEUED_BYTES 3
#define COUNT_QUEUED_BIOS 4
#define COUNT_ENDED_BIOS 5

// Bits of CONTROL_LOST.
#define LOST_OVERFLOW 1
#define LOST_PAST_END 2
#define LOST_PASSTHROUGH 4
#define LOST_ZONE 8
#define LOST_INTERNAL 16
// 32 and 128 are the agent's.
#define LOST_BIOS 64

// Which bitmap of a generation: index into disk.base is kind + generation.
#define ISSUED 0
#define COMPLETED 2

// Ranges of one discard: NVMe takes 256, nobody takes more.
#define DISCARD_RANGES 256

struct disk {
	u64 base[4]; // first word in MARKS of issued[0], issued[1], completed[0], completed[1]
	u64 blocks;
	u64 number; // from 0
	u64 bios; // 1: it has no request queue
};

// Filled by the agent before the programs are attached; sizes of MARKS and SUMMARY are set when loading.
struct { __uint(type, BPF_MAP_TYPE_HASH); __type(key, u32); __type(value, struct disk); __uint(max_entries, 64); } DISKS SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __type(key, u32); __type(value, u64); __uint(max_entries, 64); __uint(map_flags, BPF_F_MMAPABLE); } MARKS SEC(".maps");
// One bit for each word of MARKS that is not zero, so that the agent finds the marks without reading it all.
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __type(key, u32); __type(value, u64); __uint(max_entries, 1); __uint(map_flags, BPF_F_MMAPABLE); } SUMMARY SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __type(key, u32); __type(value, u64); __uint(max_entries, 1024); __uint(map_flags, BPF_F_MMAPABLE); } CONTROL SEC(".maps");

INLINE void count(struct disk *disk, u32 counter, u64 value)
{
	u32 key = CONTROL_COUNTERS + (u32)disk->number * COUNTERS_PER_DISK + counter;
	u64 *word = bpf_map_lookup_elem(&CONTROL, &key);
	if (word)
		// Its result is not used: kernels before 5.12 know no other atomic operation.
		__sync_fetch_and_add(word, value);
}
