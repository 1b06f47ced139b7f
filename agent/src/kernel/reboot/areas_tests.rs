use super::{super::file_system::ext_of, *};

const SIZE: u64 = 64 << 20;

struct Bytes(Vec<u8>);

impl ReadAt for Bytes {
    fn read_at(&self, first_byte: u64, bytes: u64) -> io::Result<Vec<u8>> {
        let found = self.0.get(first_byte as usize..(first_byte + bytes) as usize);
        found.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// GRUB's partition, an ext file system, and swap.
const PARTITIONS: [Partition; 3] = [
    Partition { first_byte: 1 << 20, bytes: 1 << 20, holder: Holder::Nobody },
    Partition { first_byte: 2 << 20, bytes: 32 << 20, holder: Holder::Nobody },
    Partition { first_byte: 34 << 20, bytes: 29 << 20, holder: Holder::Nobody },
];

/// Where the superblock of its file system lies.
const SUPERBLOCK: usize = (2 << 20) + 1024;

fn disk() -> Bytes {
    let mut bytes = vec![0; SIZE as usize];
    bytes[2 << 20..][..HEAD].copy_from_slice(&ext_of(32 << 20));
    Bytes(bytes)
}

fn of(disk: &Bytes) -> Vec<Area> {
    survey(SIZE, &PARTITIONS, Holder::Nobody, disk).unwrap()
}

#[test]
fn what_nobody_touched_is_trusted_and_what_cannot_tell_is_compared() {
    let areas = of(&disk());
    let kinds: Vec<_> = areas.iter().map(|area| area.kind).collect();
    assert_eq!(kinds, [Kind::Table, Kind::Small, Kind::Ext, Kind::Unproven]);
    assert_eq!(unproven(&areas, &of(&disk())), Ok(vec![(34 << 8, 29 << 8)]));
}

#[test]
fn a_change_of_table_end_loader_or_superblock_is_noticed() {
    let before = of(&disk());
    for (byte, word) in [
        (446, "partition table"),
        (SIZE as usize - 512, "partition table"),
        ((1 << 20) + 99_999, "changed"),
        (SUPERBLOCK + 52, "was mounted"),
    ] {
        let mut changed = disk();
        changed.0[byte] ^= 1;
        let error = unproven(&before, &of(&changed)).unwrap_err();
        assert!(error.contains(word), "{byte}: {error}");
    }
}

#[test]
fn a_file_system_that_was_not_unmounted_or_lies_under_a_volume_vouches_for_nothing() {
    let mut dirty = disk();
    dirty.0[SUPERBLOCK + 96] |= 4;
    assert_eq!(of(&dirty)[2].kind, Kind::Unproven);
    let mut mounted = disk();
    mounted.0[SUPERBLOCK + 58] = 0;
    assert_eq!(of(&mounted)[2].kind, Kind::Unproven);
    for holder in [Holder::Volumes, Holder::Other] {
        let held = survey(SIZE, &PARTITIONS, holder, &disk()).unwrap();
        assert!(held[1..].iter().all(|area| area.kind == Kind::Unproven));
    }
    // It was clean and is not any more: somebody has mounted it.
    assert!(unproven(&of(&disk()), &of(&mounted)).is_err());
}

#[test]
fn other_partitions_are_noticed() {
    let before = of(&disk());
    let fewer = survey(SIZE, &PARTITIONS[..2], Holder::Nobody, &disk()).unwrap();
    assert_eq!(unproven(&before, &fewer), Err("its partitions are others".to_owned()));
}

#[test]
fn a_disk_without_partitions_is_one_area() {
    let areas = survey(SIZE, &[], Holder::Nobody, &Bytes(vec![0; SIZE as usize])).unwrap();
    assert_eq!(areas.len(), 1);
    assert_eq!(unproven(&areas, &areas), Ok(vec![(0, (SIZE / 4096) as u32)]));
}

#[test]
fn behind_a_file_system_that_is_shorter_than_its_partition_nobody_may_write() {
    // An array's own data at the end: changed when it is assembled, whatever the file system says.
    let mut short = disk();
    short.0[2 << 20..][..HEAD].copy_from_slice(&ext_of((32 << 20) - 131_072));
    let before = of(&short);
    assert_eq!(before[2].kind, Kind::Ext);
    let mut changed = Bytes(short.0.clone());
    changed.0[(34 << 20) - 65_536] ^= 1;
    assert!(unproven(&before, &of(&changed)).unwrap_err().contains("mounted or changed"));
    short.0[2 << 20..][..HEAD].copy_from_slice(&ext_of(20 << 20));
    assert_eq!(of(&short)[2].kind, Kind::Unproven);
    // A file system that is longer than its partition.
    short.0[2 << 20..][..HEAD].copy_from_slice(&ext_of(33 << 20));
    assert_eq!(of(&short)[2].kind, Kind::Unproven);
}

#[test]
fn where_the_boot_loader_writes_all_is_compared() {
    let mut areas = of(&disk());
    distrust(&mut areas, 2 << 20).unwrap();
    assert_eq!(unproven(&areas, &of(&disk())), Ok(vec![(2 << 8, 32 << 8), (34 << 8, 29 << 8)]));
    assert!(distrust(&mut areas, 3 << 20).is_err());
}

#[test]
fn partitions_are_found_in_the_order_in_which_they_lie() {
    let sysfs = tempfile::tempdir().unwrap();
    let holders =
        [("vda2", "4096", Some("LVM-abc")), ("vda1", "2048", None), ("vda3", "6144", Some("CRYPT-1"))];
    for (name, start, holder) in holders {
        let folder = sysfs.path().join("block/vda").join(name);
        fs::create_dir_all(folder.join("holders")).unwrap();
        for (file, value) in [("partition", "1"), ("start", start), ("size", "2048\n")] {
            fs::write(folder.join(file), value).unwrap();
        }
        if let Some(uuid) = holder {
            fs::create_dir_all(folder.join("holders/dm-0/dm")).unwrap();
            fs::write(folder.join("holders/dm-0/dm/uuid"), uuid).unwrap();
        }
    }
    fs::create_dir_all(sysfs.path().join("block/vda/vda1/holders/md0")).unwrap();
    let (found, whole) = partitions(sysfs.path(), "vda").unwrap();
    let partition = |first_byte, holder| Partition { first_byte, bytes: 1 << 20, holder };
    let expected = [
        partition(1 << 20, Holder::Other),
        partition(2 << 20, Holder::Volumes),
        partition(3 << 20, Holder::Other),
    ];
    assert_eq!((&found[..], whole), (&expected[..], Holder::Nobody));
}

/// A physical volume with a plain volume in two pieces (ext), and another that nobody knows (swap).
fn group() -> Bytes {
    let mut bytes = vec![0; SIZE as usize];
    lvm::tests::physical_volume(&mut bytes, lvm::tests::PLAIN);
    // root: extents 0-3 and 8-11; swap: 4-7.
    bytes[1 << 20..][..HEAD].copy_from_slice(&ext_of(32 << 20));
    Bytes(bytes)
}

fn in_group(disk: &Bytes, holder: Holder) -> Vec<Area> {
    survey(SIZE, &[], holder, disk).unwrap()
}

#[test]
fn volumes_are_looked_into_as_partitions_are() {
    let areas = in_group(&group(), Holder::Volumes);
    let kinds: Vec<_> =
        areas.iter().map(|area| (area.first_byte >> 20, area.bytes >> 20, area.kind)).collect();
    assert_eq!(
        kinds,
        [(0, 1, Kind::Volumes), (1, 16, Kind::Ext), (33, 16, Kind::Ext), (17, 16, Kind::Unproven),]
    );
    // In the initramfs they may not be on yet.
    assert_eq!(unproven(&areas, &in_group(&group(), Holder::Nobody)), Ok(vec![(17 << 8, 16 << 8)]));
    assert_eq!(in_group(&group(), Holder::Other)[0].kind, Kind::Unproven);
}

#[test]
fn a_change_of_a_volume_or_of_the_metadata_is_noticed() {
    let before = in_group(&group(), Holder::Volumes);
    // Also where an array under it would keep its own data.
    let behind = SIZE as usize - 4096;
    for (byte, word) in
        [(700_000, "volume group"), (behind, "volume group"), ((1 << 20) + 1024 + 52, "was mounted")]
    {
        let mut changed = group();
        changed.0[byte] ^= 1;
        let error = unproven(&before, &in_group(&changed, Holder::Nobody)).unwrap_err();
        assert!(error.contains(word), "{byte}: {error}");
    }
}

#[test]
fn a_group_with_a_snapshot_is_compared_as_a_whole() {
    let mut disk = group();
    lvm::tests::physical_volume(&mut disk.0, &lvm::tests::PLAIN.replace("\"striped\"", "\"snapshot\""));
    let areas = in_group(&disk, Holder::Volumes);
    assert!(areas[0].print.contains("more than a part of a disk"), "{areas:?}");
    assert_eq!(unproven(&areas, &areas), Ok(vec![(0, (SIZE / 4096) as u32)]));
}
