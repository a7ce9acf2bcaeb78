//! What a broker is started with: ports, configuration files and environment.

use std::{fs, os::unix::fs::PermissionsExt as _};

use anyhow::Context as _;

use super::{ADMIN, ADMIN_PASSWORD};
use crate::{home::Home, port};

/// The ports of one broker.
pub(super) struct Ports {
    pub(super) amqp: u16,
    pub(super) management: u16,
    pub(super) distribution: u16,
    pub(super) epmd: u16,
}

impl Ports {
    pub(super) fn choose() -> anyhow::Result<Self> {
        Ok(Self {
            amqp: port::free()?,
            management: port::free()?,
            distribution: port::free()?,
            epmd: port::free()?,
        })
    }

    pub(super) fn epmd_env(&self) -> Vec<(String, String)> {
        vec![
            ("ERL_EPMD_PORT".to_owned(), self.epmd.to_string()),
            ("ERL_EPMD_ADDRESS".to_owned(), "127.0.0.1".to_owned()),
        ]
    }
}

pub(super) fn write_configuration(
    home: &Home,
    ports: &Ports,
    extra: &[String],
) -> anyhow::Result<()> {
    let mut conf = format!(
        "listeners.tcp.1 = 127.0.0.1:{}\n\
         management.tcp.ip = 127.0.0.1\n\
         management.tcp.port = {}\n\
         default_user = {ADMIN}\n\
         default_pass = {ADMIN_PASSWORD}\n\
         # Queue counts half a second old at most, so that tests need not wait for five.\n\
         collect_statistics_interval = 500\n",
        ports.amqp, ports.management
    );
    if home.is_chroot() {
        // The default reads /proc, which nobody has mounted there.
        conf.push_str("vm_memory_calculation_strategy = allocated\n");
    }
    for line in extra {
        conf.push_str(&line.replace("{dir}", &home.path_inside()));
        conf.push('\n');
    }
    home.write(&[
        ("rabbitmq.conf".to_owned(), conf.into_bytes()),
        (
            "inetrc".to_owned(),
            b"{host,{127,0,0,1},[\"localhost\"]}.\n{lookup,[file,native]}.\n".to_vec(),
        ),
        (
            "enabled_plugins".to_owned(),
            b"[rabbitmq_management].\n".to_vec(),
        ),
        (
            ".erlang.cookie".to_owned(),
            uuid::Uuid::now_v7().simple().to_string().into_bytes(),
        ),
    ])?;
    // Erlang refuses a cookie that others can read.
    fs::set_permissions(
        home.host(".erlang.cookie"),
        fs::Permissions::from_mode(0o400),
    )
    .context("could not protect the Erlang cookie")
}

pub(super) fn node_name(amqp_port: u16) -> String {
    format!("e2e-{amqp_port}@localhost")
}

pub(super) fn environment(home: &Home, ports: &Ports) -> Vec<(String, String)> {
    let mut environment = ports.epmd_env();
    let mut set = |name: &str, value: String| environment.push((name.to_owned(), value));
    set("HOME", home.path_inside());
    // Erlang has to find the host in a node's name; a minimal container has no /etc/hosts.
    set("ERL_INETRC", home.inside("inetrc"));
    set("RABBITMQ_NODENAME", node_name(ports.amqp));
    set("RABBITMQ_DIST_PORT", ports.distribution.to_string());
    set("RABBITMQ_CONFIG_FILE", home.inside("rabbitmq.conf"));
    set(
        "RABBITMQ_ENABLED_PLUGINS_FILE",
        home.inside("enabled_plugins"),
    );
    set("RABBITMQ_MNESIA_BASE", home.inside("mnesia"));
    set("RABBITMQ_LOG_BASE", home.inside("logs"));
    // Neither exists: the machine's own files in /etc/rabbitmq must have no say.
    set("RABBITMQ_ADVANCED_CONFIG_FILE", home.inside("none.config"));
    set("RABBITMQ_CONF_ENV_FILE", home.inside("none-env.conf"));
    set("ERL_CRASH_DUMP", home.inside("crash.dump"));
    set("ERL_CRASH_DUMP_SECONDS", "0".to_owned());
    // The script then becomes the broker instead of watching over it, and signals reach it.
    set("RABBITMQ_ALLOW_INPUT", "1".to_owned());
    set(
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
        "-noinput -kernel inet_dist_use_interface {127,0,0,1}".to_owned(),
    );
    environment
}
