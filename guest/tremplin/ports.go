package tremplin

import (
	"bufio"
	"context"
	"encoding/hex"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"google.golang.org/protobuf/proto"
)

const (
	portsPause    = 3 * time.Second  // between two looks
	portsAtLeast  = 60 * time.Second // the host is told again
	maxPorts      = 1024             // of one container
	maxSockets    = 8 << 20          // of /proc/PID/net/tcp
	listenState   = "0A"
	maxContainers = 64
)

// hiddenPorts are those of sshd for the host and of name resolution.
var hiddenPorts = map[uint32]bool{2222: true, 5355: true}

// watchPorts tells the host on which ports containers listen.
func (s *Server) watchPorts(ctx context.Context) {
	w := portWatch{s: s, pids: map[string]initProcess{}}
	tick := time.NewTicker(portsPause)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			w.look(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// An initProcess is the first process of a container, whose number may become
// another's.
type initProcess struct {
	pid   int
	begun string
}

type portWatch struct {
	s    *Server
	pids map[string]initProcess
	last *pb.ListeningPortInfo
	told time.Time
}

func (w *portWatch) look(ctx context.Context) {
	names := w.s.states.list()
	maps.DeleteFunc(w.pids, func(name string, _ initProcess) bool { return !slices.Contains(names, name) })
	if len(names) == 0 && w.last == nil {
		return
	}
	now := &pb.ListeningPortInfo{ContainerPorts: map[string]*pb.ListeningPortInfo_ContainerPortInfo{}}
	for _, name := range names[:min(len(names), maxContainers)] {
		if p, ok := w.process(ctx, name); ok {
			now.ContainerPorts[name] = &pb.ListeningPortInfo_ContainerPortInfo{ListeningTcp4Ports: listeningPorts(p.pid)}
		}
	}
	if w.last != nil && proto.Equal(now, w.last) && time.Since(w.told) < portsAtLeast {
		return
	}
	w.last, w.told = now, time.Now()
	w.s.host.ports(now)
}

// process finds a container's first process; Incus is asked once a start.
func (w *portWatch) process(ctx context.Context, name string) (initProcess, bool) {
	if p, ok := w.pids[name]; ok && startTime(p.pid) == p.begun {
		return p, true
	}
	delete(w.pids, name)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	state, err := w.s.incus.State(ctx, name)
	if err != nil || state.PID <= 1 {
		return initProcess{}, false
	}
	p := initProcess{pid: state.PID, begun: startTime(state.PID)}
	if p.begun == "" {
		return p, false
	}
	w.pids[name] = p
	return p, true
}

// startTime tells processes of one number apart; proc_pid_stat(5), field 22.
func startTime(pid int) string {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	// The name before may have anything in it.
	fields := strings.Fields(string(data)[strings.LastIndex(string(data), ")")+1:])
	if len(fields) < 20 {
		return ""
	}
	return fields[19]
}

func listeningPorts(pid int) []uint32 {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/net/tcp")
	if err != nil {
		return nil
	}
	defer f.Close()
	return parsePorts(io.LimitReader(f, maxSockets))
}

// parsePorts reads the ports of /proc/net/tcp that others can reach.
func parsePorts(r io.Reader) []uint32 {
	found := map[uint32]bool{}
	lines := bufio.NewScanner(r)
	for lines.Scan() && len(found) < maxPorts {
		f := strings.Fields(lines.Text())
		if len(f) < 4 || f[3] != listenState {
			continue
		}
		_, word, _ := strings.Cut(f[1], ":")
		b, err := hex.DecodeString(word)
		if err != nil || len(b) != 2 {
			continue
		}
		if port := uint32(b[0])<<8 | uint32(b[1]); port != 0 && !hiddenPorts[port] {
			found[port] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}
