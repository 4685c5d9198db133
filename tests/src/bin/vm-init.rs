//! Process 1 of the virtual machine of [`musubi_tests::vm`]: makes the machine usable, runs one program, says how it
//! ended, powers off. Of no use anywhere else.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use musubi_tests::vm::guest::{self, Ending};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};
use nix::sys::termios::{SetArg, cfmakeraw, tcdrain, tcgetattr, tcsetattr};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

fn main() -> Result<()> {
    ensure!(std::process::id() == 1, "vm-init is process 1 of a virtual machine and nothing else");
    mount_all()?;
    let mut output = open_output()?;
    let ending = run(&output).unwrap_or_else(|error| Ending::Failed(format!("{error:#}")));
    writeln!(output, "{ending}")?;
    // What the port has not sent yet would be lost.
    tcdrain(&output)?;
    reboot(RebootMode::RB_POWER_OFF)?;
    Ok(())
}

fn mount_all() -> Result<()> {
    let file_systems = [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
    ];
    for (kind, folder) in file_systems {
        fs::create_dir_all(folder).with_context(|| format!("mkdir {folder}"))?;
        mount(Some(kind), folder, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount {folder}"))?;
    }
    Ok(())
}

/// The program's output arrives byte for byte: raw, so the port does not turn `\n` into `\r\n`.
fn open_output() -> Result<File> {
    let port = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(guest::OUTPUT_PORT)
        .with_context(|| format!("open {}", guest::OUTPUT_PORT))?;
    let mut settings = tcgetattr(&port)?;
    cfmakeraw(&mut settings);
    tcsetattr(&port, SetArg::TCSANOW, &settings)?;
    Ok(port)
}

fn run(output: &File) -> Result<Ending> {
    load_modules()?;
    bring_up_loopback().context("bring up lo")?;
    let program = start(output)?;
    Ok(Ending::Exited(exit_code(program)?))
}

fn load_modules() -> Result<()> {
    for name in guest::split(&read(guest::MODULE_ORDER)?) {
        let file = File::open(Path::new(guest::MODULES).join(name)).with_context(|| format!("open module {name}"))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => bail!("load module {name}: {error}"),
        }
    }
    Ok(())
}

/// One RTM_NEWLINK for interface 1, which is `lo` in every namespace (rtnetlink(7)).
fn bring_up_loopback() -> Result<()> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let up = libc::IFF_UP as u32;
    let mut request = Vec::new();
    request.extend(32_u32.to_ne_bytes()); // nlmsghdr: length, type, flags, sequence, port
    request.extend(libc::RTM_NEWLINK.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([0; 4]); // ifinfomsg: family and type, index, flags, which of them change
    request.extend(1_i32.to_ne_bytes());
    request.extend(up.to_ne_bytes());
    request.extend(up.to_ne_bytes());

    let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    sendto(netlink.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0; 64];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    ensure!(length >= 20, "the kernel's answer is too short");
    let errno = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    ensure!(errno == 0, "{}", Errno::from_raw(-errno));
    Ok(())
}

fn start(output: &File) -> Result<Pid> {
    let command = read(guest::COMMAND)?;
    let (program, arguments) =
        guest::split(&command).split_first().map(|(first, rest)| (*first, rest.to_vec())).context("no command")?;
    let environment = read(guest::ENVIRONMENT)?;
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/"), (guest::INSIDE, "1")])
        .envs(guest::split(&environment).into_iter().filter_map(|pair| pair.split_once('=')))
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .spawn()
        .with_context(|| format!("start {program}"))?;
    Ok(Pid::from_raw(child.id().cast_signed()))
}

/// Waits for the program, and for every orphan before it: nobody else would, and tests wait for processes to vanish.
fn exit_code(program: Pid) -> Result<i32> {
    loop {
        match wait()? {
            WaitStatus::Exited(pid, code) if pid == program => return Ok(code),
            WaitStatus::Signaled(pid, signal, _) if pid == program => {
                return Ok(128 + signal as i32);
            }
            _ => {}
        }
    }
}

fn read(file: &str) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("read {file}"))
}
