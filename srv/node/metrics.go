package node

import (
	"context"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"missingos/srv/dc"
)

// metrics are what the node counts, in Prometheus' terms.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.HistogramVec
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "dc_requests_seconds", Help: "Requests served to other nodes, by method and kind of error.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9),
		}, []string{"method", "error"}),
	}
	m.registry.MustRegister(
		m.requests,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "dc_build_info", Help: "Always 1.", ConstLabels: prometheus.Labels{"version": Version, "commit": Commit}}, func() float64 { return 1 }),
	)
	return m
}

// observe counts one finished request.
func (m *metrics) observe(method string, took time.Duration, err error) {
	kind := "none"
	if err != nil {
		kind = dc.KindOf(err).String()
	}
	m.requests.WithLabelValues(strings.TrimPrefix(method, "/"), kind).Observe(took.Seconds())
}

// watch adds what is read from the node when it is asked for.
func (m *metrics) watch(n *Node) { m.registry.MustRegister(&replicaCollector{n: n}) }

var (
	descLeading = prometheus.NewDesc("dc_replica_leading", "1 if this node leads the group.", []string{"group"}, nil)
	descTerm    = prometheus.NewDesc("dc_replica_term", "Raft term.", []string{"group"}, nil)
	descCommit  = prometheus.NewDesc("dc_replica_commit_index", "Commit index.", []string{"group"}, nil)
	descApplied = prometheus.NewDesc("dc_replica_applied_index", "Index applied to the shard.", []string{"group"}, nil)
	descBytes   = prometheus.NewDesc("dc_replica_disk_bytes", "Size of the shard's tables, about.", []string{"group"}, nil)
	descPulled  = prometheus.NewDesc("dc_replica_received_bytes", "Bytes of rows of a snapshot that the replica has received so far; only while it receives one.", []string{"group"}, nil)
	descFree    = prometheus.NewDesc("dc_disk_free_bytes", "Free bytes of the file system that holds the node's data.", nil, nil)
	descTotal   = prometheus.NewDesc("dc_disk_total_bytes", "Size of that file system.", nil, nil)
)

// replicaCollector reads the replicas' state at every scrape.
type replicaCollector struct{ n *Node }

// Describe implements prometheus.Collector.
func (c *replicaCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descLeading, descTerm, descCommit, descApplied, descBytes, descPulled, descFree, descTotal} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *replicaCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, m := range c.n.replicas.all() {
		st, group := m.group.Status(), m.id.String()
		leading := 0.0
		if st.Leading {
			leading = 1
		}
		gauge(descLeading, leading, group)
		gauge(descTerm, float64(st.Term), group)
		gauge(descCommit, float64(st.Commit), group)
		gauge(descApplied, float64(st.Applied), group)
		gauge(descBytes, float64(m.shard.Stats().DiskBytes), group)
		if r, ok := m.shard.Receiving(); ok {
			gauge(descPulled, float64(r.Bytes), group)
		}
	}
	free, total := c.n.space.sizes()
	gauge(descFree, float64(free))
	gauge(descTotal, float64(total))
}

// serveMetrics answers scrapes at /metrics and profiles at /debug/pprof/, if an address is given.
func (n *Node) serveMetrics() error {
	if n.cfg.Metrics == "" {
		return nil
	}
	lis, err := net.Listen("tcp", n.cfg.Metrics)
	if err != nil {
		return dc.Errorf(dc.Busy, "serve metrics", n.cfg.Metrics, "%w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(n.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	s := &http.Server{Handler: mux, ReadHeaderTimeout: dialTimeout}
	n.loops.Go(func() { _ = s.Serve(lis) })
	n.closes("metrics", func(context.Context) error { return s.Close() })
	n.log.Info("metrics", "address", lis.Addr().String())
	return nil
}
