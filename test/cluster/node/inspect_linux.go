package node

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// maxInspect bounds one file or memory region that is read.
const maxInspect = 64 << 20

// ContainerPID is the first process of a container, as the node sees it.
func (n *Node) ContainerPID(ctx context.Context, id string) (int, error) {
	id = strings.TrimPrefix(id, "containerd://")
	out, err := n.ctr(ctx, "tasks", "list")
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(out, "\n") {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == id {
			return strconv.Atoi(f[1])
		}
	}
	return 0, fmt.Errorf("container %s does not run", id)
}

// ContainerFiles is what a container's processes can read beside its image:
// environment, mounted volumes, writable folders, and the memory of the first
// process. The node's root reads it through /proc.
func (n *Node) ContainerFiles(ctx context.Context, id string) (map[string]string, error) {
	pid, err := n.ContainerPID(ctx, id)
	if err != nil {
		return nil, err
	}
	proc := "/proc/" + strconv.Itoa(pid)
	out := map[string]string{}
	for _, name := range []string{"environ", "cmdline"} {
		b, err := os.ReadFile(filepath.Join(proc, name))
		if err != nil {
			return nil, err
		}
		out[name] = string(b)
	}
	for _, dir := range []string{"/tmp", "/run", "/var/run", "/dev/shm", "/etc"} {
		root := filepath.Join(proc, "root", dir)
		_ = filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return nil // links lead to files that are walked, or out of the container
			}
			if info, err := e.Info(); err == nil && info.Size() < maxInspect {
				if b, err := os.ReadFile(p); err == nil {
					out[strings.TrimPrefix(p, proc+"/root")] = string(b)
				}
			}
			return nil
		})
	}
	return out, readMemory(proc, out)
}

// readMemory adds the writable memory of a process, region by region.
func readMemory(proc string, out map[string]string) error {
	maps, err := os.Open(proc + "/maps")
	if err != nil {
		return err
	}
	defer maps.Close()
	mem, err := os.Open(proc + "/mem")
	if err != nil {
		return err
	}
	defer mem.Close()
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "rw") {
			continue
		}
		buf := make([]byte, min(to-from, maxInspect))
		// What is not mapped to anything cannot be read, and holds nothing.
		if count, _ := mem.ReadAt(buf, from); count > 0 {
			out[fmt.Sprintf("memory at %x", from)] = string(buf[:count])
		}
	}
	return lines.Err()
}

// KillSandbox kills the container that holds a pod's namespaces: what is left
// of the pod after a reboot of the node. The kubelet makes it anew, with all
// containers from the first on.
func (n *Node) KillSandbox(ctx context.Context, podUID string) error {
	out, err := n.ctr(ctx, "containers", "list", "-q", fmt.Sprintf(`labels."io.kubernetes.pod.uid"==%s,labels."io.cri-containerd.kind"==sandbox`, podUID))
	if err != nil {
		return err
	}
	id := strings.TrimSpace(out)
	if id == "" {
		return fmt.Errorf("pod %s has no sandbox", podUID)
	}
	return n.KillContainer(ctx, id)
}
