package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// homeSecrets are where tools keep credentials, relative to a home folder.
var homeSecrets = [...]string{
	".aws", ".azure", ".netrc", "_netrc", ".authinfo", ".authinfo.gpg", ".ssh", ".gnupg", ".kube", ".docker/config.json", ".dockercfg",
	".config/gh", ".config/glab-cli", ".config/hub", ".config/gcloud", ".config/doctl", ".config/containers/auth.json", ".config/git/credentials",
	".config/op", ".config/sops", ".config/rclone", ".config/azure", ".config/configstore", ".config/helm/registry", ".config/pypoetry/auth.toml",
	".config/pip/pip.conf", ".config/uv/credentials", ".local/share/uv/credentials", ".config/openai", ".config/anthropic",
	".git-credentials", ".npmrc", ".yarnrc.yml", ".pypirc", ".pip/pip.conf", ".cargo/credentials", ".cargo/credentials.toml", ".gem/credentials",
	".m2/settings.xml", ".m2/settings-security.xml", ".gradle/gradle.properties", ".composer/auth.json", ".config/composer/auth.json",
	".nuget/NuGet/NuGet.Config", ".terraform.d/credentials.tfrc.json", ".terraformrc", ".vault-token", ".vault", ".bao-token",
	".oci", ".aliyun", ".bluemix", ".fly", ".config/fly", ".netlify", ".config/netlify", ".config/heroku", ".wrangler", ".config/.wrangler",
	".boto", ".s3cfg", ".mc", ".databrickscfg", ".snowsql", ".snowflake", ".pgpass", ".my.cnf", ".mylogin.cnf", ".pulumi/credentials.json",
	".config/age", ".age", ".password-store", ".local/share/keyrings", ".local/share/kwalletd", ".kde/share/apps/kwallet", ".pki",
	".mozilla", ".config/google-chrome", ".config/chromium", ".config/BraveSoftware", ".config/microsoft-edge", ".thunderbird",
	".Xauthority", ".ICEauthority", ".krb5", ".huggingface/token", ".cache/huggingface/token", ".config/huggingface",
	".claude/.credentials.json", ".codex/auth.json", ".gemini/oauth_creds.json", ".config/github-copilot", ".spiffe",
}

// homeReadOnly are files and folders that the user's later shells, or a
// running user service manager, execute: written to, they are a way out.
var homeReadOnly = [...]string{
	".profile", ".bash_profile", ".bash_login", ".bash_logout", ".bashrc", ".zshrc", ".zshenv", ".zprofile", ".zlogin",
	".config/fish", ".config/systemd", ".local/share/systemd", ".config/autostart", ".config/environment.d", ".pam_environment", ".xprofile", ".xsessionrc",
}

// machineSockets answer to whoever may connect, and run things for them
// outside the sandbox.
var machineSockets = [...]string{
	"/run/docker.sock", "/var/run/docker.sock", "/run/docker", "/run/containerd", "/run/podman", "/run/crio", "/run/buildkit", "/run/k3s",
	"/run/libvirt", "/run/lxd", "/var/lib/lxd/unix.socket", "/var/lib/incus/unix.socket", "/var/snap/lxd/common/lxd/unix.socket", "/run/incus",
	"/run/snapd.socket", "/run/snapd-snap.socket", "/run/systemd/private", "/run/dbus/system_bus_socket", "/run/screen", "/run/tmux",
	"/run/keyrings", "/run/pcscd", "/run/spire", "/tmp/spire-agent", "/run/secrets", "/var/run/secrets", "/run/credentials",
	"/tmp/.X11-unix", "/tmp/.ICE-unix",
}

// machineReadOnly is executed as root outside the sandbox sooner or later.
var machineReadOnly = [...]string{
	"/etc/cron.d", "/etc/cron.hourly", "/etc/cron.daily", "/etc/cron.weekly", "/etc/cron.monthly", "/etc/crontab", "/etc/anacrontab",
	"/var/spool/cron", "/etc/systemd", "/lib/systemd", "/usr/lib/systemd", "/run/systemd", "/etc/init.d", "/etc/rc.local", "/etc/udev",
	"/etc/ld.so.preload", "/etc/pam.d", "/etc/sudoers", "/etc/sudoers.d", "/etc/profile", "/etc/profile.d", "/etc/bash.bashrc",
	"/etc/passwd", "/etc/shadow", "/etc/group", "/etc/security", "/etc/ssh",
}

// view is what the child's file system will be: every path is absolute, free
// of symbolic links and exists.
type view struct {
	pin, readOnly, cover, private []string
	limits                        []string
	mounts                        []mountPoint
	shared                        []string // folders that are never hidden whole
}

// newView resolves what o and the machine's habits ask for.
func newView(o Options) (*view, error) {
	mounts, err := readMounts()
	if err != nil {
		return nil, err
	}
	v := &view{mounts: mounts}
	hs := homes(os.Geteuid() == 0 && o.User == nil)
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own program: %w", err)
	}
	ro := append([]string{exe}, o.ReadOnly...)
	v.shared = append(append([]string{o.Dir}, hs...), ro...)

	var own []string // paths that the child must not swap either
	for _, p := range o.Hide {
		real, err := v.unit(p, true)
		if err != nil {
			return nil, err
		}
		own = append(own, real)
	}
	for _, p := range ro {
		real, err := filepath.EvalSymlinks(p)
		if err != nil {
			return nil, fmt.Errorf("keep %s read-only: %w", p, err)
		}
		v.readOnly = append(v.readOnly, real)
		own = append(own, real)
	}
	for _, m := range mounts {
		// /sys as a whole is read-only for the child.
		if (m.kind == "cgroup" || m.kind == "cgroup2") && !below(m.path, "/sys") {
			v.readOnly = append(v.readOnly, m.path)
		}
	}
	v.defaults(hs, o)
	if o.Isolate != nil {
		v.hideSockets()
	}
	v.finish(own, o)
	return v, nil
}

// defaults adds what is hidden or read-only on every machine, where it exists.
func (v *view) defaults(hs []string, o Options) {
	var hide, ro []string
	for _, h := range hs {
		for _, p := range homeSecrets {
			hide = append(hide, filepath.Join(h, p))
		}
		for _, p := range homeReadOnly {
			ro = append(ro, filepath.Join(h, p))
		}
	}
	hide = append(hide, machineSockets[:]...)
	if o.User == nil && os.Geteuid() == 0 {
		ro = append(ro, machineReadOnly[:]...)
	}
	uid := strconv.Itoa(os.Geteuid())
	for _, glob := range []string{"/tmp/krb5cc_*", "/tmp/tmux-*", "/tmp/ssh-*", "/tmp/emacs" + uid} {
		m, _ := filepath.Glob(glob) // only a bad pattern errs
		hide = append(hide, m...)
	}
	for _, env := range []string{"SSH_AUTH_SOCK", "XAUTHORITY", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE",
		"GOOGLE_APPLICATION_CREDENTIALS", "KUBECONFIG", "NETRC", "GNUPGHOME", "DOCKER_CONFIG", "CLOUDSDK_CONFIG", "AZURE_CONFIG_DIR", "GH_CONFIG_DIR"} {
		if p := os.Getenv(env); filepath.IsAbs(p) {
			hide = append(hide, p)
		}
	}
	for _, env := range []string{"SPIFFE_ENDPOINT_SOCKET", "DOCKER_HOST", "DBUS_SESSION_BUS_ADDRESS"} {
		if p, ok := strings.CutPrefix(strings.Replace(os.Getenv(env), "unix:path=", "unix:", 1), "unix:"); ok {
			p, _, _ = strings.Cut(p, ",")
			hide = append(hide, "/"+strings.TrimLeft(p, "/"))
		}
	}
	for _, p := range hide {
		_, _ = v.unit(p, false) // what is not there needs no hiding
	}
	private, _ := filepath.Glob("/run/user/*")
	private = append(private, os.Getenv("XDG_RUNTIME_DIR"))
	for _, h := range hs { // the aws CLI keeps what it fetched below it, and fails where it cannot
		private = append(private, filepath.Join(h, ".aws"))
	}
	for _, p := range private {
		if st, err := os.Stat(p); err == nil && st.IsDir() && filepath.IsAbs(p) && !contains(v.shared, p) && !leads(v.shared, p) {
			if real, err := filepath.EvalSymlinks(p); err == nil {
				v.private = append(v.private, real)
			}
		}
	}
	for _, p := range ro {
		if real, err := filepath.EvalSymlinks(p); err == nil {
			v.readOnly = append(v.readOnly, real)
		}
	}
}

// unit adds path to what is covered: the path itself, or the folder it has for
// itself. A file that is replaced by another under the same name outside, as
// token files and sockets are, would come out from under its cover; a folder
// does not.
func (v *view) unit(path string, required bool) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("hide %q: the path must be absolute", path)
	}
	parent, perr := filepath.EvalSymlinks(filepath.Dir(path))
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		if required && errors.Is(err, fs.ErrNotExist) && perr == nil && v.ownFolder(parent, true) {
			v.cover = append(v.cover, parent)
			return parent, nil
		}
		return "", fmt.Errorf("hide %s: create it before the child starts: %w", path, err)
	}
	st, err := os.Stat(real)
	if err != nil {
		return "", fmt.Errorf("hide %s: %w", path, err)
	}
	if st.IsDir() {
		if required && (contains(v.shared, real) || leads(v.shared, real)) {
			return "", fmt.Errorf("hide %s: it holds the working directory, a home, the policy or attache itself; keep it in a folder of its own", path)
		}
		if contains(v.shared, real) || leads(v.shared, real) {
			return "", nil
		}
		v.cover = append(v.cover, real)
		return real, nil
	}
	dir := filepath.Dir(real)
	if v.ownFolder(dir, st.Mode()&fs.ModeSocket != 0) {
		v.cover = append(v.cover, dir)
		return dir, nil
	}
	if required {
		v.limits = append(v.limits, path+" is covered alone: replaced by rename while the child runs it becomes visible; keep it in a folder of its own with mode 0700")
	}
	v.cover = append(v.cover, real)
	return real, nil
}

// ownFolder reports whether dir may be hidden whole: it holds nothing the
// child needs, and is closed to others or holds a socket.
func (v *view) ownFolder(dir string, socket bool) bool {
	switch dir {
	case "/", "/tmp", "/var/tmp", "/run", "/dev", "/dev/shm", "/etc", "/var", "/var/lib", "/opt", "/srv", "/home", "/root", "/mnt", "/usr":
		return false
	}
	for _, p := range v.shared {
		if real, err := filepath.EvalSymlinks(p); err == nil && (real == dir || below(real, dir)) {
			return false
		}
	}
	st, err := os.Stat(dir)
	return err == nil && st.IsDir() && (socket || st.Mode().Perm()&0o077 == 0)
}

// finish adds aliases and pins and puts everything in an order in which it can
// be mounted: parents first.
func (v *view) finish(own []string, o Options) {
	for _, p := range slices.Clone(v.cover) {
		v.cover = append(v.cover, aliases(v.mounts, p)...)
	}
	for _, p := range slices.Clone(v.readOnly) {
		v.readOnly = append(v.readOnly, aliases(v.mounts, p)...)
	}
	for _, p := range own {
		for dir := filepath.Dir(p); dir != "/" && dir != "."; dir = filepath.Dir(dir) {
			if movable(dir, o.User) {
				v.pin = append(v.pin, dir)
			}
		}
	}
	v.private = order(v.private, nil)
	v.cover = order(v.cover, v.private)
	hidden := append(slices.Clone(v.cover), v.private...)
	v.readOnly = order(v.readOnly, hidden)
	v.pin = dedupe(v.pin)
}

// dedupe sorts paths, parents first.
func dedupe(list []string) []string {
	list = slices.Clone(list)
	slices.Sort(list)
	return slices.Compact(list)
}

// order sorts list parents first, without entries that are inside another
// entry of list or of hidden.
func order(list, hidden []string) []string {
	var out []string
	for _, p := range dedupe(list) {
		inside := contains(hidden, p)
		for _, q := range append(slices.Clone(out), hidden...) {
			inside = inside || below(p, q)
		}
		if !inside {
			out = append(out, p)
		}
	}
	return out
}

// movable reports whether the child could rename dir, which takes writing to
// the folder that holds it.
func movable(dir string, u *User) bool {
	parent := filepath.Dir(dir)
	if u == nil {
		return os.Geteuid() == 0 || unix.Faccessat(unix.AT_FDCWD, parent, unix.W_OK, unix.AT_EACCESS) == nil
	}
	var st unix.Stat_t
	if unix.Stat(parent, &st) != nil {
		return true
	}
	return st.Uid == u.UID || st.Mode&0o002 != 0 || st.Mode&0o020 != 0
}

// homes lists the home folders whose credentials are hidden: the invoking
// user's, by environment and by passwd, and every user's if the child is root
// and could become any of them.
func homes(all bool) []string {
	uids := map[string]bool{strconv.Itoa(os.Getuid()): true, os.Getenv("SUDO_UID"): true}
	list := []string{os.Getenv("HOME")}
	if f, err := os.Open("/etc/passwd"); err == nil {
		defer func() { _ = f.Close() }()
		for sc := bufio.NewScanner(f); sc.Scan(); {
			if p := strings.Split(sc.Text(), ":"); len(p) == 7 && (all || uids[p[2]]) {
				list = append(list, p[5])
			}
		}
	}
	var out []string
	for _, h := range list {
		real, err := filepath.EvalSymlinks(h)
		if err != nil || !filepath.IsAbs(real) || real == "/" {
			continue
		}
		if st, err := os.Stat(real); err == nil && st.IsDir() {
			out = append(out, real)
		}
	}
	return dedupe(out)
}
