//! The container image: every digest is of what it names, the same program gives the same bytes, what cannot run in an empty
//! file system is refused, and a real runtime takes it and runs it.
#![allow(clippy::unwrap_used, reason = "what is outside of test functions is part of a test, too")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use musubi_tests::containerd::Containerd;
use musubi_tests::image::{Image, hex_digest};
use musubi_tests::node::{Node, musubi};
use serde_json::{Value, json};

/// A static program that does nothing but end with this code: an ELF header, one segment, three instructions.
fn static_program(code: u8) -> Vec<u8> {
    const ADDRESS: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let (machine, instructions) = if cfg!(target_arch = "aarch64") {
        // mov x0, #code; mov x8, #93; svc #0
        (183u16, [0xd280_0000 | u32::from(code) << 5, 0xd280_0ba8, 0xd400_0001].map(u32::to_le_bytes).concat())
    } else {
        // mov edi, code; mov eax, 60; syscall
        (62u16, vec![0xbf, code, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05])
    };
    let size = HEADERS + u64::try_from(instructions.len()).unwrap();
    let mut program = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let halves = |values: &[u16]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let longs = |values: &[u64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    program.extend(halves(&[2, machine, 1, 0])); // an executable, of version 1
    program.extend(longs(&[ADDRESS + HEADERS, 64, 0])); // its entry, where the segments are listed, no sections
    program.extend(halves(&[0, 0, 64, 56, 1, 64, 0, 0])); // sizes and numbers of these tables
    program.extend(halves(&[1, 0, 5, 0])); // a segment to load, to be read and executed
    program.extend(longs(&[0, ADDRESS, ADDRESS, size, size, 0x1000]));
    program.extend(instructions);
    program
}

fn image(program: &[u8]) -> Image<'_> {
    Image { repository: "docker.io/library/musubi", version: "1.2.3", description: "for a test", program }
}

/// The files of a tar archive with their modes.
fn files(archive: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let header = entry.header();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, 0));
        let (path, mode) = (entry.path().unwrap().display().to_string(), header.mode().unwrap());
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        assert!(files.insert(path, (mode, content)).is_none(), "no file is there twice");
    }
    files
}

/// What a descriptor leads to, taken out of the files.
fn follow(files: &mut BTreeMap<String, (u32, Vec<u8>)>, descriptor: &Value) -> Vec<u8> {
    let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let (_, content) = files.remove(&format!("blobs/sha256/{digest}")).unwrap_or_else(|| panic!("no blob {digest}"));
    assert_eq!(hex_digest(&content), digest);
    assert_eq!(descriptor["size"], content.len());
    content
}

fn parse(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[test]
fn every_digest_is_of_what_it_names() {
    let program = static_program(0);
    let mut files = files(&image(&program).archive().unwrap());
    assert_eq!(parse(&files.remove("oci-layout").unwrap().1), json!({"imageLayoutVersion": "1.0.0"}));
    let index = parse(&files.remove("index.json").unwrap().1);
    let [descriptor] = &index["manifests"].as_array().unwrap()[..] else { panic!("one image") };
    let annotations = json!({"io.containerd.image.name": "docker.io/library/musubi:1.2.3", "org.opencontainers.image.ref.name": "musubi:1.2.3"});
    assert_eq!(descriptor["annotations"], annotations);

    let manifest = parse(&follow(&mut files, descriptor));
    assert_eq!(manifest["mediaType"], descriptor["mediaType"]);
    let config = parse(&follow(&mut files, &manifest["config"]));
    let [layer] = &manifest["layers"].as_array().unwrap()[..] else { panic!("one layer") };
    assert_eq!(config["rootfs"]["diff_ids"], json!([layer["digest"]]), "the layer is not compressed");
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    assert_eq!(descriptor["platform"], json!({"architecture": architecture, "os": "linux"}));
    assert_eq!((&config["architecture"], &config["os"]), (&json!(architecture), &json!("linux")));
    assert_eq!(config["config"]["Entrypoint"], json!(["/musubi"]));
    let content = follow(&mut files, layer);
    assert_eq!(self::files(&content), BTreeMap::from([("musubi".to_owned(), (0o755, program.clone()))]));

    let for_docker = parse(&files.remove("manifest.json").unwrap().1);
    let path = |descriptor: &Value| descriptor["digest"].as_str().unwrap().replace("sha256:", "blobs/sha256/");
    let expected =
        json!([{"Config": path(&manifest["config"]), "RepoTags": ["musubi:1.2.3"], "Layers": [path(layer)]}]);
    assert_eq!(for_docker, expected);
    assert_eq!(files.into_keys().collect::<Vec<_>>(), Vec::<String>::new(), "nothing else is in the archive");
}

#[test]
fn the_same_program_gives_the_same_image() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("musubi");
    let make = |content: &[u8], mode: u32| {
        fs::write(&program, content).unwrap();
        fs::set_permissions(&program, PermissionsExt::from_mode(mode)).unwrap();
        let archive = folder.path().join("new/folder/image.tar");
        let made = Command::new(env!("CARGO_BIN_EXE_image")).arg(&program).arg(&archive).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let said = String::from_utf8(made.stdout).unwrap();
        assert!(said.contains(&format!("musubi:{}", env!("CARGO_PKG_VERSION"))), "{said}");
        fs::read(archive).unwrap()
    };
    let (one, other) = (static_program(0), static_program(1));
    let first = make(&one, 0o755);
    thread::sleep(Duration::from_millis(1100)); // tar knows seconds
    assert!(make(&one, 0o700) == first, "neither time nor mode of the file matter");
    assert!(make(&other, 0o755) != first);
}

#[test]
fn what_cannot_run_in_an_empty_file_system_is_refused() {
    let program = static_program(0);
    let mut for_another_machine = program.clone();
    for_another_machine[18] = 21; // e_machine: PowerPC
    let rows: [(&[u8], &str); 6] = [
        (&fs::read(musubi()).unwrap(), "linked dynamically"),
        (b"#!/bin/sh\n", "no 64-bit"),
        (b"", "no 64-bit"),
        (&for_another_machine, "machine 21"),
        (&program[..40], "ends in the middle"),
        (&program[..66], "ends in the middle"),
    ];
    for (program, expected) in rows {
        let error = image(program).archive().map(drop).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn containerd_takes_it_and_runs_its_program() {
    const CODE: u8 = 7;
    const NAME: &str = "docker.io/library/musubi:1.2.3";
    let node = Node::new();
    let runtime = Containerd::start(&node);
    let archive = node.folder().join("musubi.tar");
    fs::write(&archive, image(&static_program(CODE)).archive().unwrap()).unwrap();
    let imported = runtime.ctr(&["images", "import", "--snapshotter", "native", archive.to_str().unwrap()]);
    assert!(imported.status.success(), "{imported:?}");
    let listed = String::from_utf8(runtime.ctr(&["images", "list", "-q"]).stdout).unwrap();
    assert!(listed.lines().any(|name| name == NAME), "{listed}");
    let runc = runtime.runc().display().to_string();
    // By its entry point. A cgroup would be the machine's, and limits need one.
    let options = ["--rm", "--snapshotter", "native", "--cgroup", "", "--cpu-shares", "0", "--net-host"];
    let ran = runtime.ctr(&[&["run", "--runc-binary", &runc], &options[..], &[NAME, "c1"]].concat());
    assert_eq!(ran.status.code(), Some(i32::from(CODE)), "{ran:?}");
}
