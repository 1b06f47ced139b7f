// The tracking program for kernels without atomic operations but XADD (before Linux 5.12), and with the block layer of before
// 5.15: marks 32 KiB at a time, in the same bitmaps as tracker.bpf.c.
//
// In: block_rq_issue, block_rq_complete, block_rq_requeue. Which argument is the request differs between the kernels it
// serves; the agent finds that out in the kernel's BTF and loads the function that fits (src/kernel/program.rs).
// Out: one byte of MARKS per 8 blocks and generation, once at issue and once at completion; ranges too long for a loop are
// keys of EXTENT_SET. What cannot be recorded sets a word of the control words: tracking is lost, with the reason.
//
// **Only stores of the same value.** A byte of MARKS, of SUMMARY or of a reason is stored whole, and all who store to it
// between two takes store one and the same value. So it does not matter who else is between its look and its store: another
// processor, or this program again in an interrupt (these kernels let it run within itself). What lies beside it is not
// touched: byte stores do not tear. Whole words are stored only where every byte of them is to be set. Counters are added to
// by XADD, whose result is not used; the set of extents is locked by the kernel.
//
// The disk is told by its queue, as the requests of SG_IO, /dev/sg and NVMe passthrough name no disk or another one.
// request_queue.backing_dev_info ended with Linux 5.15: there this program is refused, as tracker.bpf.c is before.

#include "shared.bpf.h"

#define NOINLINE static __attribute__((noinline))

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct device { u32 devt; };
struct backing_dev_info { struct device *owner; };
struct request_queue { struct backing_dev_info *backing_dev_info; };
struct bvec_iter { u64 bi_sector; u32 bi_size; };
struct bio { struct bio *bi_next; struct bvec_iter bi_iter; };
struct request { struct request_queue *q; u32 cmd_flags; u32 __data_len; u64 __sector; struct bio *bio; };
#pragma clang attribute pop

// One word for each reason, in the order of the bits of CONTROL_LOST.
#define CONTROL_LOST_WORDS 9

// Longest range that is marked word by word: 128 MiB, the block group of ext4, so that trimming a file system does not
// fill the set of extents. The ranges of a discard with several are marked in one word each or are extents: the verifier
// would follow each turn of the one loop within each turn of the other, and take its time at every start.
#define LOOP_WORDS 512
#define LOOP_WORDS_OF_SEVERAL 0

// first block | blocks << 32; 1 << 63 | generation << 40 | kind << 32 | disk number. The value says nothing.
struct extent { u64 place, owner; };
struct { __uint(type, BPF_MAP_TYPE_HASH); __type(key, struct extent); __type(value, u32); __uint(max_entries, 16384); } EXTENT_SET SEC(".maps");

INLINE void lost(u32 reason)
{
	u32 key = CONTROL_LOST_WORDS + __builtin_ctz(reason);
	u64 *word = bpf_map_lookup_elem(&CONTROL, &key);
	if (word)
		*(volatile u64 *)word = 1;
}

// Sets the bytes of a word that these bits are in; false when the word is out of the map. The bits are whole bytes, but at
// the end of a disk, where they are all that the byte has.
NOINLINE int mark_word(u32 index, u64 bits)
{
	u32 key = index >> 6;
	u64 *word = bpf_map_lookup_elem(&MARKS, &index);
	u64 *summary = bpf_map_lookup_elem(&SUMMARY, &key);
	if (!word || !summary)
		return 0;
	// Before the word, and looked at also where the word is set already: whoever sees a mark finds it by its summary.
	volatile u8 *group = (volatile u8 *)summary + (index >> 3 & 7);
	if (*group != 0xff)
		*group = 0xff;
	if ((*(volatile u64 *)word & bits) == bits)
		return 1;
	volatile u8 *bytes = (volatile u8 *)word;
#pragma clang loop unroll(full)
	for (u32 i = 0; i < 8; i++) {
		u8 byte = bits >> i * 8;
		if (byte)
			bytes[i] = byte;
	}
	return 1;
}

INLINE void mark_extent(struct disk *disk, u32 kind, u32 generation, u64 first, u64 blocks)
{
	// Before the entry: zero tells the agent that there is none.
	u32 key = CONTROL_EXTENTS + generation, value = 1;
	u64 *used = bpf_map_lookup_elem(&CONTROL, &key);
	if (used)
		__sync_fetch_and_add(used, 1);
	struct extent extent = {
		.place = first | blocks << 32,
		.owner = 1ULL << 63 | (u64)generation << 40 | (u64)kind << 32 | disk->number,
	};
	if (!used || bpf_map_update_elem(&EXTENT_SET, &extent, &value, 0))
		lost(LOST_OVERFLOW);
}

NOINLINE int mark(struct disk *disk, u32 kind, u64 sector, u64 bytes, u32 most)
{
	u32 key = CONTROL_GENERATION;
	u64 *current = bpf_map_lookup_elem(&CONTROL, &key);
	if (!current)
		return 0;
	u32 generation = *(volatile u64 *)current & 1;
	u64 last = (sector + ((bytes + 511) >> 9) - 1) >> 3;
	if (last >= disk->blocks) {
		lost(LOST_PAST_END);
		return 0;
	}
	// Whole bytes, but none past the end of the disk.
	u64 first = sector >> 3 & ~7ULL;
	last |= 7;
	if (last >= disk->blocks)
		last = disk->blocks - 1;
	u64 first_word = first >> 6, last_word = last >> 6, more = last_word - first_word;
	if (more > most) {
		mark_extent(disk, kind, generation, first, last - first + 1);
		return 0;
	}
	u32 base = (u32)(generation ? disk->base[kind + 1] : disk->base[kind]);
	u32 index = base + (u32)first_word;
	u64 head = ~0ULL << (first & 63), tail = ~0ULL >> (63 - (last & 63));
	if (more == 0)
		head &= tail;
	// The last word first: when it is inside the map, all are.
	if ((more && !mark_word(index + (u32)more, tail)) || !mark_word(index, head)) {
		lost(LOST_INTERNAL);
		return 0;
	}
#pragma clang loop unroll(disable)
	for (u32 i = 1; i < LOOP_WORDS; i++) {
		if (i >= more)
			break;
		u32 whole = index + i, group = whole >> 6;
		u64 *word = bpf_map_lookup_elem(&MARKS, &whole);
		u64 *summary = bpf_map_lookup_elem(&SUMMARY, &group);
		if (!word || !summary)
			break;
		*((volatile u8 *)summary + (whole >> 3 & 7)) = 0xff;
		*(volatile u64 *)word = ~0ULL;
	}
	return 0;
}

// A discard may be of several ranges that are not neighbours: one for each bio. All else is one range.
INLINE void mark_request(struct disk *disk, u32 kind, struct request *rq, u64 bytes)
{
	struct bio *bio = rq->bio;
	if ((rq->cmd_flags & 0xff) != OP_DISCARD || !bio || !bio->bi_next) {
		mark(disk, kind, rq->__sector, bytes, LOOP_WORDS);
		return;
	}
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < DISCARD_RANGES && bio; i++) {
		if (bio->bi_iter.bi_size)
			mark(disk, kind, bio->bi_iter.bi_sector, bio->bi_iter.bi_size, LOOP_WORDS_OF_SEVERAL);
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
	struct request_queue *queue = rq->q;
	if (!queue)
		return 0;
	struct backing_dev_info *info = queue->backing_dev_info;
	if (!info)
		return 0;
	struct device *owner = info->owner;
	if (!owner)
		return 0;
	// Requests to partitions carry sectors of the whole disk.
	u32 device = owner->devt;
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
	// Operations without data are flushes, and what is done to zones: odd ones above 9, and 6 and 8 before Linux 5.8.
	u32 operation = rq->cmd_flags & 0xff;
	if (((operation & 1) && operation > 9) || operation == 6 || operation == 8)
		lost(LOST_ZONE);
	return 1;
}

INLINE int issued(struct request *rq)
{
	struct disk *disk = changed_disk(rq);
	u64 bytes = rq->__data_len;
	if (!disk || has_no_place(rq, bytes))
		return 0;
	mark_request(disk, ISSUED, rq, bytes);
	count(disk, COUNT_WRITES, 1);
	count(disk, COUNT_ISSUED_BYTES, bytes);
	return 0;
}

// The request will be issued, and so marked, again; only the count of what is under way changes.
INLINE int requeued(struct request *rq)
{
	struct disk *disk = changed_disk(rq);
	if (disk)
		count(disk, COUNT_REQUEUED_BYTES, rq->__data_len);
	return 0;
}

// Since Linux 5.11 the request is the first argument; before, its queue is.
SEC("tp_btf/block_rq_issue") int issue(u64 *ctx) { return issued((struct request *)ctx[0]); }
SEC("tp_btf/block_rq_issue") int issue_after_queue(u64 *ctx) { return issued((struct request *)ctx[1]); }
SEC("tp_btf/block_rq_requeue") int requeue(u64 *ctx) { return requeued((struct request *)ctx[0]); }
SEC("tp_btf/block_rq_requeue") int requeue_after_queue(u64 *ctx) { return requeued((struct request *)ctx[1]); }

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

char LICENSE[] SEC("license") = "Dual MIT/GPL";
