package cicerone

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/google/uuid"

	"github.com/auberge-vm/auberge/guestlink/wire"
	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// transferPath accepts a path beneath the VM's directory of transfers. A
// caller can't name a stream that is not its own.
func transferPath(p string) error {
	if strings.HasPrefix(p, streamScheme) {
		return fmt.Errorf("%w: path %q: streams are for Cicerone1's ExportContainer and ImportContainer", ErrInvalid, wire.Text(p, 100))
	}
	if p == "" || len(p) > maxArgument || strings.ContainsRune(p, 0) {
		return fmt.Errorf("%w: the path must have 1 to %d bytes", ErrInvalid, maxArgument)
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return fmt.Errorf("%w: path %q leads out of the VM's directory of transfers", ErrInvalid, wire.Text(p, 200))
		}
	}
	return nil
}

// containerVM returns the VM of a container that has to be named.
func (s *Service) containerVM(sub policy.Subject, vmName, name string) (*vm, error) {
	if err := checkContainer(name); err != nil {
		return nil, err
	}
	v, err := s.find(sub, vmName)
	if err == nil {
		err = v.needContainers()
	}
	return v, err
}

// ExportLxdContainer begins to export a container to a file of the VM.
func (s *Service) ExportLxdContainer(ctx context.Context, sub policy.Subject, req *pb.ExportLxdContainerRequest) (*pb.ExportLxdContainerResponse, error) {
	v, err := s.containerVM(sub, req.GetVmName(), req.GetContainerName())
	if err == nil {
		err = transferPath(req.GetExportPath())
	}
	if err == nil {
		err = v.transfer(ctx, opExport, req.GetContainerName(), req.GetExportPath(), nil)
	}
	if err != nil {
		return nil, err
	}
	return &pb.ExportLxdContainerResponse{Status: pb.ExportLxdContainerResponse_EXPORTING}, nil
}

// ImportLxdContainer begins to import a container from a file of the VM.
func (s *Service) ImportLxdContainer(ctx context.Context, sub policy.Subject, req *pb.ImportLxdContainerRequest) (*pb.ImportLxdContainerResponse, error) {
	v, err := s.containerVM(sub, req.GetVmName(), req.GetContainerName())
	if err == nil {
		err = transferPath(req.GetImportPath())
	}
	if err == nil {
		err = v.transfer(ctx, opImport, req.GetContainerName(), req.GetImportPath(), nil)
	}
	if err != nil {
		return nil, err
	}
	return &pb.ImportLxdContainerResponse{Status: pb.ImportLxdContainerResponse_IMPORTING}, nil
}

// ExportContainer begins to write a container to a file of the caller. The
// signals of ExportLxdContainer tell how far that is.
func (s *Service) ExportContainer(ctx context.Context, sub policy.Subject, vmName, name string, out *os.File) error {
	return s.streamed(ctx, sub, opExport, vmName, name, out)
}

// ImportContainer begins to make a container from a file of the caller.
func (s *Service) ImportContainer(ctx context.Context, sub policy.Subject, vmName, name string, in *os.File) error {
	return s.streamed(ctx, sub, opImport, vmName, name, in)
}

func (s *Service) streamed(ctx context.Context, sub policy.Subject, kind opKind, vmName, name string, f *os.File) error {
	v, err := s.containerVM(sub, vmName, name)
	if err != nil {
		return err
	}
	own, blocking, err := ownFile(f)
	if err != nil {
		return err
	}
	file := &callersFile{File: own, blocking: blocking}
	if err := s.takeStream(sub.Owner.UID); err != nil {
		file.Close()
		return err
	}
	file.closed = func() { s.giveStream(sub.Owner.UID) }
	err = v.transfer(ctx, kind, name, "", file)
	if !file.used {
		file.Close()
	}
	return err
}

// transfer begins an export or import; with f, which is the operation's when
// there is no error, by a stream.
func (v *vm) transfer(ctx context.Context, kind opKind, name, path string, f *callersFile) error {
	if err := v.startLxd(ctx, false); err != nil {
		return err
	}
	o, fresh, err := v.beginOp(kind, name)
	if err != nil {
		return err
	}
	if !fresh {
		return fmt.Errorf("an %s of container %q is in progress already", kind, name)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var st *stream
	if f != nil {
		id := uuid.NewString()
		path = streamScheme + id
		begin, err := v.openStream(ctx, id, kind, f)
		if err != nil {
			v.fail(o, err)
			return err
		}
		v.s.mu.Lock()
		if v.ops[o.key()] == o {
			st = begin(o)
			o.stream = st
		}
		v.s.mu.Unlock()
		if st == nil {
			begin(nil)
			_, _, err := v.outcome(o)
			return errors.Join(errors.New("the stream was not used"), err)
		}
	}
	err = v.agentOp(o, func() error {
		if kind == opExport {
			r, err := v.tremplin.ExportContainer(ctx, &tpb.ExportContainerRequest{ContainerName: name, ExportPath: path})
			if err != nil {
				return wire.Explain("export the container", err)
			}
			if r.GetStatus() != tpb.ExportContainerResponse_EXPORTING {
				return fmt.Errorf("export the container: the guest says: %s", wire.Words(r.GetFailureReason()))
			}
			return nil
		}
		r, err := v.tremplin.ImportContainer(ctx, &tpb.ImportContainerRequest{ContainerName: name, ImportPath: path})
		if err != nil {
			return wire.Explain("import the container", err)
		}
		if r.GetStatus() != tpb.ImportContainerResponse_IMPORTING {
			return fmt.Errorf("import the container: the guest says: %s", wire.Words(r.GetFailureReason()))
		}
		return nil
	})
	if err != nil && st != nil {
		select {
		case <-st.copied: // the file is not used any more
		case <-ctx.Done(): // it never is done with: see maxStreams
		}
	}
	return err
}

// cancelTransfer asks tremplin to give up.
func (v *vm) cancelTransfer(ctx context.Context, kind opKind, name string) (found bool, err error) {
	if kind == opExport {
		r, err := v.tremplin.CancelExportContainer(ctx, &tpb.CancelExportContainerRequest{InProgressContainerName: name})
		return r.GetStatus() == tpb.CancelExportContainerResponse_CANCEL_QUEUED, wire.Explain("cancel the export", err)
	}
	r, err := v.tremplin.CancelImportContainer(ctx, &tpb.CancelImportContainerRequest{InProgressContainerName: name})
	return r.GetStatus() == tpb.CancelImportContainerResponse_CANCEL_QUEUED, wire.Explain("cancel the import", err)
}

// CancelExportLxdContainer ends an export; its last signal is CANCELLED.
func (s *Service) CancelExportLxdContainer(ctx context.Context, sub policy.Subject, req *pb.CancelExportLxdContainerRequest) (*pb.CancelExportLxdContainerResponse, error) {
	found, err := s.cancel(ctx, sub, opExport, req.GetVmName(), req.GetInProgressContainerName())
	if err != nil {
		return nil, err
	}
	if !found {
		return &pb.CancelExportLxdContainerResponse{Status: pb.CancelExportLxdContainerResponse_OPERATION_NOT_FOUND, FailureReason: "no such export is in progress"}, nil
	}
	return &pb.CancelExportLxdContainerResponse{Status: pb.CancelExportLxdContainerResponse_CANCEL_QUEUED}, nil
}

// CancelImportLxdContainer ends an import; its last signal is CANCELLED.
func (s *Service) CancelImportLxdContainer(ctx context.Context, sub policy.Subject, req *pb.CancelImportLxdContainerRequest) (*pb.CancelImportLxdContainerResponse, error) {
	found, err := s.cancel(ctx, sub, opImport, req.GetVmName(), req.GetInProgressContainerName())
	if err != nil {
		return nil, err
	}
	if !found {
		return &pb.CancelImportLxdContainerResponse{Status: pb.CancelImportLxdContainerResponse_OPERATION_NOT_FOUND, FailureReason: "no such import is in progress"}, nil
	}
	return &pb.CancelImportLxdContainerResponse{Status: pb.CancelImportLxdContainerResponse_CANCEL_QUEUED}, nil
}

func (s *Service) cancel(ctx context.Context, sub policy.Subject, kind opKind, vmName, name string) (bool, error) {
	v, err := s.containerVM(sub, vmName, name)
	if err != nil {
		return false, err
	}
	ctx, stop := context.WithTimeout(ctx, callTimeout)
	defer stop()
	return v.cancelOp(ctx, kind, name)
}
