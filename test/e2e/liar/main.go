// Liar is put into VMs by the end-to-end tests: a guest whose root says to the
// host what he likes. As `tremplin`, or as `liar agents TOKEN`, it is the
// agents that the host calls; as `liar attack NAME ...` it makes calls.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sort"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/auberge-vm/auberge/vsock"
)

const (
	// dir is where the processes of one guest leave what others must know.
	dir = "/run/liar"
	// garconPort is where the agent of the container listens.
	garconPort = 10000
	// patience bounds one call.
	patience = time.Minute
)

func main() {
	if err := run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "liar:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	switch {
	case filepath.Base(args[0]) == "tremplin":
		return tremplin()
	case len(args) == 3 && args[1] == "agents":
		return agents(args[2])
	case len(args) >= 3 && args[1] == "attack":
		attack := attacks[args[2]]
		if attack == nil {
			var all []string
			for name := range attacks {
				all = append(all, name)
			}
			sort.Strings(all)
			return fmt.Errorf("there is no attack %q, only %q", args[2], all)
		}
		return attack(args[3:])
	}
	return errors.New("usage: tremplin | liar agents TOKEN | liar attack NAME ARGUMENT...")
}

// lie is what the agents say at the moment: a word that the test writes.
func lie() string {
	b, _ := os.ReadFile(dir + "/lie")
	return string(b)
}

func note(name, text string) error {
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// line connects to a port of the host.
func line(port uint32) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///host", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return vsock.DialHost(ctx, port) }),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(64<<20)))
}

func soon() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patience)
}
