package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
)

// etcd is three etcd servers on loopback, with their defaults.
type etcd struct {
	dir            string
	clients, peers [3]string // addresses
	procs          [3]*exec.Cmd
}

var _ store = (*etcd)(nil)

func (e *etcd) name() string { return "etcd" }

func (e *etcd) up(ctx context.Context, dir string) error {
	if _, err := exec.LookPath("etcd"); err != nil {
		return errors.New("no etcd in PATH: apt-get install etcd-server")
	}
	e.dir = dir
	for i := range 3 {
		for _, a := range []*string{&e.clients[i], &e.peers[i]} {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			*a = l.Addr().String()
			if err := l.Close(); err != nil {
				return err
			}
		}
	}
	for i := range 3 {
		if err := e.run(i); err != nil {
			return err
		}
	}
	return e.wait(ctx)
}

func (e *etcd) run(i int) error {
	var all []string
	for j, p := range e.peers {
		all = append(all, fmt.Sprintf("e%d=http://%s", j, p))
	}
	home := filepath.Join(e.dir, fmt.Sprint("e", i))
	if err := os.MkdirAll(home, 0o700); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(home, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	c := exec.Command("etcd",
		"--name", fmt.Sprint("e", i), "--data-dir", filepath.Join(home, "data"), "--logger", "zap", "--log-level", "error",
		"--listen-client-urls", "http://"+e.clients[i], "--advertise-client-urls", "http://"+e.clients[i],
		"--listen-peer-urls", "http://"+e.peers[i], "--initial-advertise-peer-urls", "http://"+e.peers[i],
		"--initial-cluster", strings.Join(all, ","), "--initial-cluster-state", "new",
	)
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		return err
	}
	e.procs[i] = c
	return nil
}

// wait returns when a put works.
func (e *etcd) wait(ctx context.Context) error {
	for range 100 {
		c, err := e.dial(ctx, true)
		if err != nil {
			return err
		}
		try, cancel := context.WithTimeout(ctx, time.Second)
		err = c.put(try, "ready", nil)
		cancel()
		c.close()
		if err == nil {
			return nil
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	return errors.New("etcd does not get ready; see its logs in " + e.dir)
}

func (e *etcd) down(context.Context) error {
	var errs error
	for i := range e.procs {
		if e.procs[i] != nil {
			errs = errors.Join(errs, e.end(i, syscall.SIGTERM))
		}
	}
	return errs
}

func (e *etcd) end(i int, sig syscall.Signal) error {
	c := e.procs[i]
	e.procs[i] = nil
	if err := c.Process.Signal(sig); err != nil {
		return err
	}
	var exit *exec.ExitError
	if err := c.Wait(); err != nil && !errors.As(err, &exit) {
		return err
	}
	return nil
}

func (e *etcd) processes() (pids []int) {
	for _, c := range e.procs {
		if c != nil {
			pids = append(pids, c.Process.Pid)
		}
	}
	return pids
}

func (e *etcd) leader(ctx context.Context) (int, error) {
	c, err := e.client(e.clients[:]...)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	for i, a := range e.clients {
		try, cancel := context.WithTimeout(ctx, time.Second)
		st, err := c.Status(try, a)
		cancel()
		if err == nil && st.Leader == st.Header.MemberId {
			return i, nil
		}
	}
	return 0, errors.New("etcd has no leader")
}

func (e *etcd) kill(_ context.Context, n int) error  { return e.end(n, syscall.SIGKILL) }
func (e *etcd) start(_ context.Context, n int) error { return e.run(n) }

func (e *etcd) client(endpoints ...string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
}

func (e *etcd) dial(ctx context.Context, everywhere bool) (caller, error) {
	endpoints := e.clients[:]
	if !everywhere {
		n, err := e.leader(ctx)
		if err != nil {
			return nil, err
		}
		endpoints = e.clients[n : n+1]
	}
	c, err := e.client(endpoints...)
	if err != nil {
		return nil, err
	}
	return &etcdCaller{c: c}, nil
}

type etcdCaller struct {
	c       *clientv3.Client
	session *concurrency.Session
}

func (e *etcdCaller) mkdir(context.Context, string) (err error) {
	if e.session == nil {
		e.session, err = concurrency.NewSession(e.c, concurrency.WithTTL(10))
	}
	return err
}

func (e *etcdCaller) put(ctx context.Context, path string, value []byte) error {
	_, err := e.c.Put(ctx, path, string(value))
	return err
}

func (e *etcdCaller) get(ctx context.Context, path string) error {
	r, err := e.c.Get(ctx, path)
	if err == nil && len(r.Kvs) != 1 {
		err = fmt.Errorf("%s: %d values", path, len(r.Kvs))
	}
	return err
}

func (e *etcdCaller) lock(ctx context.Context, path string) error {
	m := concurrency.NewMutex(e.session, path)
	if err := m.Lock(ctx); err != nil {
		return err
	}
	return m.Unlock(ctx)
}

func (e *etcdCaller) watch(ctx context.Context, dir string, ready chan<- struct{}, fn func([]byte)) error {
	for r := range e.c.Watch(ctx, dir+"/", clientv3.WithPrefix(), clientv3.WithCreatedNotify()) {
		if r.Created {
			close(ready)
		}
		for _, ev := range r.Events {
			fn(ev.Kv.Value)
		}
	}
	return nil
}

func (e *etcdCaller) close() {
	if e.session != nil {
		_ = e.session.Close()
	}
	_ = e.c.Close()
}
