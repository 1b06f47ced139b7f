// Disks without a request queue (md arrays, multipath of device mapper): the same marks from the tracepoints of bios.
// Part of tracker.bpf.c; loaded only where such a disk is protected.
//
// In: block_bio_queue, block_bio_complete. Out: marks, and in BIOS every write under way.
//
// A driver may point a bio elsewhere, or use its iterator up, before it ends. So the range is noted when the bio is
// queued, under its address, and its end is known by the address alone. By then partitions are resolved: the sector is
// the whole disk's, although bi_bdev still names the partition (blk_partition_remap, Linux 5.12 and later). A bio that
// is split keeps its address and ends after all its parts (bio_chain).
//
// A bio that a driver above hands down without making a copy was queued there and is not queued here: which drivers
// may be above is decided at discovery (src/kernel/bio_based.rs).

// Writes under way at once; the number of entries is set when loading.
struct bio_range { u64 sector; u32 bytes; u32 device; };
struct { __uint(type, BPF_MAP_TYPE_HASH); __type(key, u64); __type(value, struct bio_range); __uint(max_entries, 1); } BIOS SEC(".maps");

// Counted before it is marked; marked before it leaves the count.
INLINE void bio_ended(u64 key, struct bio_range *range)
{
	struct bio_range ended = *range;
	u32 device = ended.device;
	struct disk *disk = bpf_map_lookup_elem(&DISKS, &device);
	if (disk)
		mark(disk, COMPLETED, ended.sector, ended.bytes);
	if (bpf_map_delete_elem(&BIOS, &key) || !disk)
		return;
	count(disk, COUNT_COMPLETED_BYTES, ended.bytes);
	count(disk, COUNT_ENDED_BIOS, 1);
}

// The protected disk that a bio is for, or null.
INLINE struct disk *disk_of_bio(struct bio *bio, u32 *device)
{
	struct block_device *place = bio->bi_bdev;
	if (!place)
		return 0;
	struct gendisk *whole = place->bd_disk;
	if (!whole)
		return 0;
	*device = whole->part0->bd_dev;
	struct disk *disk = bpf_map_lookup_elem(&DISKS, device);
	return disk && disk->bios ? disk : 0;
}

SEC("tp_btf/block_bio_queue") int bio_queue(u64 *ctx)
{
	struct bio *bio = (struct bio *)ctx[0];
	u32 operation = bio->bi_opf & 0xff, device = 0;
	if (operation == OP_READ)
		return 0;
	struct disk *disk = disk_of_bio(bio, &device);
	if (!disk)
		return 0;
	u64 key = (u64)bio;
	struct bio_range range = { .sector = bio->bi_iter.bi_sector, .bytes = bio->bi_iter.bi_size, .device = device };
	if (!range.bytes) {
		// Flushes carry no data; odd operations above 9 without any are resets of zones.
		if ((operation & 1) && operation > 9)
			lost(LOST_ZONE);
		return 0;
	}
	struct bio_range *known = bpf_map_lookup_elem(&BIOS, &key);
	// Its end was not seen, and the kernel uses the memory again: it is over.
	if (known)
		bio_ended(key, known);
	count(disk, COUNT_QUEUED_BIOS, 1);
	mark(disk, ISSUED, range.sector, range.bytes);
	count(disk, COUNT_WRITES, 1);
	count(disk, COUNT_ISSUED_BYTES, range.bytes);
	if (bpf_map_update_elem(&BIOS, &key, &range, BPF_NOEXIST)) {
		lost(LOST_BIOS);
		count(disk, COUNT_ENDED_BIOS, 1);
	}
	return 0;
}

SEC("tp_btf/block_bio_complete") int bio_complete(u64 *ctx)
{
	struct bio *bio = (struct bio *)ctx[1];
	u64 key = (u64)bio;
	struct bio_range *range = bpf_map_lookup_elem(&BIOS, &key);
	if (range) {
		bio_ended(key, range);
		return 0;
	}
	// Begun before this program, or not noted for want of room: where the driver left it as it was, it says itself.
	u32 device = 0;
	if ((bio->bi_opf & 0xff) == OP_READ || !bio->bi_iter.bi_size)
		return 0;
	struct disk *disk = disk_of_bio(bio, &device);
	if (disk)
		mark(disk, COMPLETED, bio->bi_iter.bi_sector, bio->bi_iter.bi_size);
	return 0;
}
