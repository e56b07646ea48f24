//! Ceph's S3 gateway on a cluster of this machine: one monitor, one storage daemon that keeps everything in memory, no manager, no
//! authentication inside. Ready in a few seconds.

use std::{fs, net::TcpListener, path::Path, path::PathBuf};

use rand::Rng as _;
use uuid::Uuid;

use super::{Account, NotInstalled, child::Child, client, in_path, scratch::Scratch};
use crate::wait;

/// Where Ceph's programs are.
#[derive(Clone, Debug)]
pub struct Installed {
    ceph: PathBuf,
    monmaptool: PathBuf,
    mon: PathBuf,
    osd: PathBuf,
    radosgw: PathBuf,
    admin: PathBuf,
}

/// A running cluster with its gateway. Dropping it kills all of it.
#[derive(Debug)]
pub struct Radosgw {
    /// Monitor, storage daemon and gateway.
    children: [Child; 3],
    endpoint: String,
    _scratch: Scratch,
}

impl Radosgw {
    /// Whether everything that it takes is in PATH.
    pub fn find() -> Result<Installed, NotInstalled> {
        let find = |program: &str| {
            in_path(program).ok_or_else(|| NotInstalled { server: "radosgw", program: program.to_owned() })
        };
        Ok(Installed {
            radosgw: find("radosgw")?,
            admin: find("radosgw-admin")?,
            mon: find("ceph-mon")?,
            osd: find("ceph-osd")?,
            ceph: find("ceph")?,
            monmaptool: find("monmaptool")?,
        })
    }

    /// Starts a cluster, makes the user and the bucket.
    pub async fn start(installed: &Installed, account: Account<'_>, bucket: &str) -> Self {
        let scratch = Scratch::new("radosgw");
        let folder = scratch.path();
        let (mon_port, port) = (free_port(), free_port());
        let (cluster, osd) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
        for sub in ["mon", "osd", "rgw", "run"] {
            fs::create_dir(folder.join(sub)).expect("a folder can be made");
        }
        let file = |name: &str| folder.join(name).to_str().expect("temporary folders have plain names").to_owned();
        let (config, map) = (file("ceph.conf"), file("monmap"));
        fs::write(&config, configuration(folder, &cluster, port)).expect("the configuration can be written");

        let address = format!("[v1:127.0.0.1:{mon_port}]");
        let make_map = ["--create", "--fsid", &cluster, "--addv", "a", &address, &map];
        Child::run("monmaptool", &installed.monmaptool, &make_map, folder, &[]).await;
        let make_mon = ["-c", &config, "--mkfs", "-i", "a", "--monmap", &map, "--keyring", "/dev/null"];
        Child::run("mon-mkfs", &installed.mon, &make_mon, folder, &[]).await;
        let mon = Child::start("mon", &installed.mon, &["-c", &config, "-i", "a", "-f"], folder);

        // Waits for the monitor by itself; but one that meets it before it has formed its quorum of one is told no cluster id, gives none with
        // its command and is refused for it (EPERM). Both commands may be run twice.
        let add_osd = ["-c", &config, "--connect-timeout", "30", "osd", "new", &osd];
        Child::run_until_it_succeeds("osd-new", &installed.ceph, &add_osd, folder, &[&mon]).await;
        let place = ["-c", &config, "osd", "crush", "add", "osd.0", "1", "root=default", "host=localhost"];
        Child::run_until_it_succeeds("osd-place", &installed.ceph, &place, folder, &[&mon]).await;
        let make_osd = ["-c", &config, "-i", "0", "--mkfs", "--osd-uuid", &osd];
        Child::run("osd-mkfs", &installed.osd, &make_osd, folder, &[&mon]).await;
        let osd = Child::start("osd", &installed.osd, &["-c", &config, "-i", "0", "-f"], folder);

        // Waits for the storage daemon by itself, and makes the gateway's pools.
        let user = ["-c", &config, "-n", "client.rgw", "user", "create", "--uid=lockstep", "--display-name=lockstep"];
        let keys = [format!("--access-key={}", account.key), format!("--secret-key={}", account.secret)];
        let user: Vec<&str> = user.into_iter().chain(keys.iter().map(String::as_str)).collect();
        Child::run("user-create", &installed.admin, &user, folder, &[&mon, &osd]).await;
        let gateway = Child::start("radosgw", &installed.radosgw, &["-c", &config, "-n", "client.rgw", "-f"], folder);

        let endpoint = format!("http://127.0.0.1:{port}");
        let children = [mon, osd, gateway];
        let client = client(&endpoint, account);
        wait::until("radosgw makes a bucket", || {
            children.iter().for_each(Child::must_run);
            let request = client.create_bucket().bucket(bucket).send();
            async move { request.await.map_err(|error| format!("{error:?}")) }
        })
        .await;
        Self { children, endpoint, _scratch: scratch }
    }

    /// Where the gateway listens.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The end of what each of its processes said.
    pub fn log(&self) -> String {
        self.children.iter().map(Child::log).collect::<Vec<_>>().join("\n")
    }
}

/// A port that nobody listens on, below those that the kernel gives to connections that go out: these can't take it before its server does.
fn free_port() -> u16 {
    let free = (0..1000).map(|_| rand::rng().random_range(10_240..32_000_u16));
    let mut free = free.filter(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    free.next().expect("one of a thousand ports is free")
}

fn configuration(folder: &Path, cluster: &str, port: u16) -> String {
    let folder = folder.display();
    format!(
        "[global]
fsid = {cluster}
mon_initial_members = a
monmap = {folder}/monmap
ms_bind_msgr2 = false
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
auth_allow_insecure_global_id_reclaim = true
run_dir = {folder}/run
crash_dir = {folder}/run
admin_socket =
pid_file =
log_to_file = false
log_to_stderr = true
err_to_stderr = true
mon_cluster_log_to_file = false
debug_rocksdb = 0
# At its default of a second, making the gateway's pools takes twenty.
paxos_propose_interval = 0.02
paxos_min_wait = 0.01
mon_tick_interval = 1
# The monitor would stop itself on a disk that is nearly full; it writes a few megabytes.
mon_data_avail_crit = 0
mon_data_avail_warn = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
# The daemon's own commands at its start may come before it has learnt the cluster's id, and are refused then ('wrong fsid').
osd_class_update_on_start = false
osd_crush_update_on_start = false
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
[mon.a]
mon_data = {folder}/mon
[osd.0]
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 1073741824
[client.rgw]
rgw_frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw_data = {folder}/rgw
"
    )
}
