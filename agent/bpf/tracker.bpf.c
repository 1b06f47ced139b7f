// Marks every block that the protected disks are told to change, in bitmaps that the agent maps into its memory.
//
// In: the kernel's tracepoints of request-based disks (block_rq_issue, block_rq_complete, block_rq_requeue), and those of
// bios for disks without a request queue (bios.bpf.h).
// Out: one bit per 4 KiB block and generation, once at issue and once at completion; ranges too long for a loop go
// to a table of extents. What cannot be recorded sets a bit in the control words: tracking is lost, with the reason.
//
// The layout of the maps is told in src/kernel/layout.rs; numbers here and there must agree (FORMAT).
// Only the fields used are declared; clang records their names and the loader relocates them to the running kernel,
// so neither kernel headers nor vmlinux.h are needed. Works from Linux 5.15 (request_queue.disk) on.

#include "shared.bpf.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct gendisk;
struct block_device { u32 bd_dev; struct gendisk *bd_disk; };
struct gendisk { struct block_device *part0; };
struct request_queue { struct gendisk *disk; };
struct bvec_iter { u64 bi_sector; u32 bi_size; };
struct bio { struct bio *bi_next; struct block_device *bi_bdev; u32 bi_opf; struct bvec_iter bi_iter; };
struct request { struct request_queue *q; u32 cmd_flags; u32 __data_len; u64 __sector; struct bio *bio; };
#pragma clang attribute pop

// Longest range that is marked bit by bit: 128 MiB, the block group of ext4, so that trimming a file system does
// not fill the table. Long enough to be rare above, short enough for the verifier (a bounded loop, no helper).
#define LOOP_WORDS 512
// Extents kept for each generation.
#define EXTENTS 1024
// For each generation EXTENTS entries of two words: first block | blocks << 32; 1 << 63 | kind << 32 | disk number.
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __type(key, u32); __type(value, u64); __uint(max_entries, 2 * EXTENTS * 2); __uint(map_flags, BPF_F_MMAPABLE); } EXTENT_TABLE SEC(".maps");

INLINE void lost(u64 reason)
{
	u32 key = CONTROL_LOST;
	u64 *word = bpf_map_lookup_elem(&CONTROL, &key);
	if (word)
		__sync_fetch_and_or(word, reason);
}

// Sets bits of one word; false when the word is out of the map.
INLINE int mark_word(u32 index, u64 bits)
{
	u64 *word = bpf_map_lookup_elem(&MARKS, &index);
	if (!word)
		return 0;
	u64 now = *(volatile u64 *)word;
	if ((now & bits) == bits)
		return 1;
	if (now == 0) {
		// Before the word: whoever finds the word set may rely on its bit here.
		u32 key = index >> 6;
		u64 *summary = bpf_map_lookup_elem(&SUMMARY, &key);
		if (!summary)
			return 0;
		__sync_fetch_and_or(summary, 1ULL << (index & 63));
	}
	__sync_fetch_and_or(word, bits);
	return 1;
}

INLINE void mark_extent(struct disk *disk, u32 kind, u32 generation, u64 first, u64 blocks)
{
	u32 key = CONTROL_EXTENTS + generation;
	u64 *used = bpf_map_lookup_elem(&CONTROL, &key);
	if (!used)
		return;
	u64 entry = __sync_fetch_and_add(used, 1);
	if (entry >= EXTENTS) {
		lost(LOST_OVERFLOW);
		return;
	}
	u32 low = (generation * EXTENTS + (u32)entry) * 2, high = low + 1;
	u64 *place = bpf_map_lookup_elem(&EXTENT_TABLE, &low);
	u64 *owner = bpf_map_lookup_elem(&EXTENT_TABLE, &high);
	if (!place || !owner) {
		lost(LOST_INTERNAL);
		return;
	}
	__sync_fetch_and_or(place, first | blocks << 32);
	// Last, and atomic: a reader of the live table takes only entries that have this word.
	__sync_fetch_and_or(owner, 1ULL << 63 | (u64)kind << 32 | disk->number);
}

// A function of its own, not static: the verifier checks it once and not for each call.
__attribute__((noinline)) int mark(struct disk *disk, u32 kind, u64 sector, u64 bytes)
{
	if (!disk || kind > COMPLETED)
		return 0;
	u32 key = CONTROL_GENERATION;
	u64 *current = bpf_map_lookup_elem(&CONTROL, &key);
	if (!current)
		return 0;
	u32 generation = *(volatile u64 *)current & 1;
	u64 first = sector >> 3;
	u64 last = (sector + ((bytes + 511) >> 9) - 1) >> 3;
	if (last >= disk->blocks) {
		lost(LOST_PAST_END);
		return 0;
	}
	u64 first_word = first >> 6, last_word = last >> 6;
	if (last_word - first_word > LOOP_WORDS) {
		mark_extent(disk, kind, generation, first, last - first + 1);
		return 0;
	}
	u32 base = (u32)(generation ? disk->base[kind + 1] : disk->base[kind]);
	u32 index = base + (u32)first_word;
	u32 more = (u32)(last_word - first_word);
	u64 head = ~0ULL << (first & 63), tail = ~0ULL >> (63 - (last & 63));
	if (more == 0)
		head &= tail;
	// The last word first: when it is inside the map, all are.
	if (more && !mark_word(index + more, tail)) {
		lost(LOST_INTERNAL);
		return 0;
	}
	if (!mark_word(index, head)) {
		lost(LOST_INTERNAL);
		return 0;
	}
	// Whole words between. Few paths, or the verifier follows each of them through every turn.
#pragma clang loop unroll(disable)
	for (u32 i = 1; i < LOOP_WORDS; i++) {
		if (i >= more)
			break;
		u32 whole = index + i, key = whole >> 6;
		u64 *word = bpf_map_lookup_elem(&MARKS, &whole);
		u64 *summary = bpf_map_lookup_elem(&SUMMARY, &key);
		if (!word || !summary)
			break;
		__sync_fetch_and_or(summary, 1ULL << (whole & 63));
		// Others only set bits, so all ones may replace whatever is there.
		*(volatile u64 *)word = ~0ULL;
	}
	return 0;
}

// A discard may be of several ranges that are not neighbours: one for each bio. All else is one range.
INLINE void mark_request(struct disk *disk, u32 kind, struct request *rq, u64 bytes)
{
	struct bio *bio = rq->bio;
	if ((rq->cmd_flags & 0xff) != OP_DISCARD || !bio) {
		mark(disk, kind, rq->__sector, bytes);
		return;
	}
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < DISCARD_RANGES && bio; i++) {
		if (bio->bi_iter.bi_size)
			mark(disk, kind, bio->bi_iter.bi_sector, bio->bi_iter.bi_size);
		bio = bio->bi_next;
	}
	if (bio)
		lost(LOST_OVERFLOW);
}

// The disk that a request changes, or null: not protected, a read, a flush without data, or nothing to mark.
INLINE struct disk *changed_disk(struct request *rq)
{
	u32 operation = rq->cmd_flags & 0xff;
	if (operation == OP_READ)
		return 0;
	struct gendisk *whole = rq->q->disk;
	if (!whole)
		return 0;
	// Requests to partitions carry sectors of the whole disk.
	u32 device = whole->part0->bd_dev;
	struct disk *disk = bpf_map_lookup_elem(&DISKS, &device);
	if (!disk)
		return 0;
	if (operation >= OP_FIRST_PASSTHROUGH) {
		// A command of somebody's own (SG_IO, NVMe): what it changes is not known.
		if ((operation & 1) && rq->__data_len)
			lost(LOST_PASSTHROUGH);
		return 0;
	}
	return disk;
}

INLINE int has_no_place(struct request *rq, u64 bytes)
{
	if (bytes && rq->__sector != ~0ULL)
		return 0;
	// Odd operations without data are resets of zones; even ones are flushes and the like.
	u32 operation = rq->cmd_flags & 0xff;
	if ((operation & 1) && operation > 9)
		lost(LOST_ZONE);
	return 1;
}

SEC("tp_btf/block_rq_issue") int issue(u64 *ctx)
{
	struct request *rq = (struct request *)ctx[0];
	struct disk *disk = changed_disk(rq);
	u64 bytes = rq->__data_len;
	if (!disk || has_no_place(rq, bytes))
		return 0;
	mark_request(disk, ISSUED, rq, bytes);
	count(disk, COUNT_WRITES, 1);
	count(disk, COUNT_ISSUED_BYTES, bytes);
	return 0;
}

// A completion may be partial: the kernel calls with the sector reached and the bytes done from there.
SEC("tp_btf/block_rq_complete") int complete(u64 *ctx)
{
	struct request *rq = (struct request *)ctx[0];
	u64 bytes = (u32)ctx[2];
	struct disk *disk = changed_disk(rq);
	if (!disk || !bytes || rq->__sector == ~0ULL)
		return 0;
	mark_request(disk, COMPLETED, rq, bytes);
	count(disk, COUNT_COMPLETED_BYTES, bytes);
	return 0;
}

// The request will be issued, and so marked, again; only the count of what is under way changes.
SEC("tp_btf/block_rq_requeue") int requeue(u64 *ctx)
{
	struct request *rq = (struct request *)ctx[0];
	struct disk *disk = changed_disk(rq);
	if (disk)
		count(disk, COUNT_REQUEUED_BYTES, rq->__data_len);
	return 0;
}

#include "bios.bpf.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";
