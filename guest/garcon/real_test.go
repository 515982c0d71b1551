package garcon_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/guest/garcon/sftp"
	pb "github.com/auberge-vm/auberge/protos/containerpb"
)

// The ansible-playbook that containers have: what it does is done, and how it
// ends is told with its own words.
func TestRealPlaybooks(t *testing.T) {
	c, h, g := up(t, nil)
	written := filepath.Join(c.home, "written")
	const head = "- hosts: all\n  become: false\n  gather_facts: false\n  tasks:\n"
	for _, p := range []struct {
		name, text string
		status     pb.ApplyAnsiblePlaybookProgressInfo_Status
		lines      string // among what it prints
		details    string // among the reasons of a failure
	}{
		{"one that writes a file", head + "    - name: write it\n      ansible.builtin.copy:\n        content: by a playbook\n        dest: " + written + "\n",
			pb.ApplyAnsiblePlaybookProgressInfo_SUCCEEDED, "TASK [write it]", ""},
		{"one that fails", head + "    - ansible.builtin.command: /bin/false\n    - ansible.builtin.file:\n        path: " + written + "\n        state: absent\n",
			pb.ApplyAnsiblePlaybookProgressInfo_FAILED, "non-zero return code", "exit status 2"},
		{"one that is no YAML", "- hosts: all\n  tasks: [\n",
			pb.ApplyAnsiblePlaybookProgressInfo_FAILED, "Syntax Error", "Syntax Error while loading YAML"},
		{"one of no module", head + "    - no.such.module:\n",
			pb.ApplyAnsiblePlaybookProgressInfo_FAILED, "", "no.such.module"},
	} {
		t.Run(p.name, func(t *testing.T) {
			resp, err := g.ApplyAnsiblePlaybook(deadline(t), &pb.ApplyAnsiblePlaybookRequest{Playbook: p.text})
			if err != nil || resp.GetStatus() != pb.ApplyAnsiblePlaybookResponse_STARTED {
				t.Fatalf("%v, %v", resp, err)
			}
			var lines []string
			m := next(t, h.lines)
			for ; m.GetStatus() == pb.ApplyAnsiblePlaybookProgressInfo_IN_PROGRESS; m = next(t, h.lines) {
				lines = append(lines, m.GetStatusString()...)
			}
			if m.GetStatus() != p.status || !strings.Contains(m.GetFailureDetails(), p.details) || p.details == "" && m.GetFailureDetails() != "" {
				t.Errorf("the end is %v", m)
			}
			if got := strings.Join(lines, "\n"); !strings.Contains(got, p.lines) {
				t.Errorf("it printed\n%s", got)
			}
			if b, err := os.ReadFile(written); err != nil || string(b) != "by a playbook" {
				t.Errorf("the file holds %q, %v", b, err)
			}
		})
	}
}

// carryTo has this program carry its standard streams to a socket, as a client
// on the host does with the stream that it has.
const carryTo = "GARCON_TEST_CARRY_TO"

func carry(path string) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go func() {
		io.Copy(conn, os.Stdin)
		conn.Close()
	}()
	io.Copy(os.Stdout, conn)
}

// A stock client of sftp gets at the user's files, at the port of which the
// host is told.
func TestRealSFTP(t *testing.T) {
	c, _, g := up(t, func(c *container) { c.conf.SFTPPath = sftp.ServerPath })
	info, err := g.GetGarconSessionInfo(deadline(t), &pb.GetGarconSessionInfoRequest{})
	if err != nil || info.GetSftpVsockPort() == 0 {
		t.Fatalf("%v, %v", info, err)
	}
	c.write("home/from", "there", 0o600)
	long := strings.Repeat("0123456789abcdef", 1<<16)
	local := t.TempDir()
	if err := os.WriteFile(filepath.Join(local, "long"), []byte(long), 0o600); err != nil {
		t.Fatal(err)
	}
	// -D is a program whose streams are the server's.
	cmd := exec.CommandContext(deadline(t), "sftp", "-b", "-", "-D", os.Args[0])
	cmd.Env = append(os.Environ(), carryTo+"="+c.port(info.GetSftpVsockPort()))
	cmd.Dir, cmd.WaitDelay = local, patience
	cmd.Stdin = strings.NewReader("get from\nput long there\nmkdir d\nrename there d/long\nsymlink d/long link\nls -1\nget link back\n")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if b, err := os.ReadFile(filepath.Join(local, "from")); err != nil || string(b) != "there" {
		t.Errorf("it got %q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(local, "back")); err != nil || string(b) != long {
		t.Errorf("%d bytes came back, %v", len(b), err)
	}
	if b, err := os.ReadFile(filepath.Join(c.home, "d/long")); err != nil || string(b) != long {
		t.Errorf("%d bytes are there, %v", len(b), err)
	}
	for _, name := range []string{"d", "from", "link"} {
		if !strings.Contains(string(out), "\n"+name+"\n") {
			t.Errorf("it lists no %s: %s", name, out)
		}
	}
}
